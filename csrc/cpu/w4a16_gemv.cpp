// w4a16_gemv.cpp — y = x @ dequant(weight)^T for at most 8 rows, as in decode.
//
// Reading qweight is the cost, so every word is read once: codes become numbers in registers and meet all rows there.
// One chain of FMAs per row and vector of columns; several vectors at once where rows are few, to hide the FMA's
// latency. Order of sums as in w4a16_gemm.cpp: for the same row, both give the same bits.
#include "activations.h"
#include "int4.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// Vectors of columns at once for so many rows: enough chains, and no more accumulators than registers hold.
constexpr int vectors_for(int rows) {
  if (kRegisters < 16) return 1;
  return rows <= 2 ? 4 : rows <= 4 ? 2 : 1;
}

template <int Rows, int Vecs>
void add_product(Vec weight, const float* x, int64_t stride, Vec (&sums)[Rows][Vecs], int v) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) sums[r][v] += weight * x[r * stride];
}

template <int Rows, int Vecs>
void multiply(const W4A16Args& a, const float* x, int64_t column) {
  PackedColumns columns[Vecs];
  for (int v = 0; v < Vecs; ++v) columns[v] = PackedColumns::at(a, column + v * kWidth);

  Vec total[Rows][Vecs] = {};
  for (int64_t chunk = 0; chunk < a.k; chunk += kChunk) {
    Vec sums[Rows][Vecs] = {};
    const int64_t chunk_end = chunk + kChunk < a.k ? chunk + kChunk : a.k;
    for_each_group(chunk, chunk_end, a.group_size, [&](int64_t begin, int64_t end, int64_t group) {
      GroupParams params[Vecs];
      for (int v = 0; v < Vecs; ++v) params[v] = columns[v].load_params(group);
      for (int64_t k = begin; k < end; k += kPackFactor) {
        UintVec words[Vecs];
        for (int v = 0; v < Vecs; ++v) words[v] = columns[v].template load_words<Reuse::kNone>(k);
#pragma GCC unroll 4
        for (int i = 0; i < kPackFactor; i += 2) {
          const float* from = x + k + i;
          for (int v = 0; v < Vecs; ++v)
            add_product<Rows, Vecs>(dequantize<false>(words[v], params[v]), from, a.k, sums, v);
          for (int v = 0; v < Vecs; ++v) {
            add_product<Rows, Vecs>(dequantize<true>(words[v], params[v]), from + 1, a.k, sums, v);
            words[v] >>= 8;
          }
        }
      }
    });
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vecs; ++v) total[r][v] += sums[r][v];
  }

  const int64_t count = a.n - column < Vecs * kWidth ? a.n - column : Vecs * kWidth;
  for (int r = 0; r < Rows; ++r) {
    float row[Vecs * kWidth];
    for (int v = 0; v < Vecs; ++v) store(row + v * kWidth, total[r][v]);
    store_sums(a.y, a.bias, a.dtype, r * a.n + column, column, row, count);
  }
}

// The columns [begin, end), both multiples of a tile, most vectors first.
template <int Rows, int Vecs = vectors_for(Rows)>
void multiply_columns(const W4A16Args& a, const float* x, int64_t begin, int64_t end) {
  for (; begin + Vecs * kWidth <= end; begin += Vecs * kWidth) multiply<Rows, Vecs>(a, x, begin);
  if constexpr (Vecs > 1) {
    if (begin < end) multiply_columns<Rows, Vecs / 2>(a, x, begin, end);
  }
}

template <int Rows>
void multiply_rows(const W4A16Args& a, const float* x) {
  if constexpr (Rows < kGemvMaxRows) {
    if (a.m > Rows) return multiply_rows<Rows + 1>(a, x);
  }
  const int64_t tiles = (a.n + kPackColumns - 1) / kPackColumns;
  const int64_t grain = 1 + 100000 / (a.k * kPackColumns);  // about 10 us of work
  parallel_for(tiles, grain, [&](int64_t begin, int64_t end) {
    multiply_columns<Rows>(a, x, begin * kPackColumns, end * kPackColumns);
  });
}

}  // namespace

void w4a16_gemv(const W4A16Args& args) {
  multiply_rows<1>(args, to_floats(args.x, args.dtype, args.scratch, args.m * args.k));
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
