// w4a16_gemm.cpp — y = x @ dequant(weight)^T for many rows, as in prefill.
//
// A panel of weights, kChunk long and as wide as the accumulators, is dequantized once into the first-level cache; then
// blocks of rows of x pass over it, each element of x broadcast against whole vectors of columns. Rows are taken in
// blocks whose part of x stays in the second-level cache. Order of sums as in w4a16_gemv.cpp.
#include "activations.h"
#include "int4.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// Rows x vectors of accumulators: with the panel's vectors and a broadcast they fill the registers.
constexpr int kVecs = kRegisters < 16 ? 1 : 2;
constexpr int kRows = kRegisters < 16 ? 2 : (kRegisters - 4) / kVecs;
constexpr int kPanelColumns = kVecs * kWidth;
constexpr int64_t kRowBlock = 20 * 12;  // x [240, kChunk] fp32 is 240 KiB

// panel[k - begin][kPanelColumns] = weights of [column, column + kPanelColumns) for k in [begin, end)
void dequantize_panel(const W4A16Args& a, int64_t column, int64_t begin, int64_t end, float* panel) {
  for (int v = 0; v < kVecs; ++v) {
    float* to = panel + v * kWidth;
    const PackedColumns columns = PackedColumns::at(a, column + v * kWidth);
    for_each_group(begin, end, a.group_size, [&](int64_t from, int64_t stop, int64_t group) {
      const GroupParams params = columns.load_params(group);
      for (int64_t k = from; k < stop; k += kPackFactor) {
        UintVec words = columns.load_words<Reuse::kSoon>(k);
#pragma GCC unroll 4
        for (int i = 0; i < kPackFactor; i += 2, words >>= 8) {
          store(to + (k - begin + i) * kPanelColumns, dequantize<false>(words, params));
          store(to + (k - begin + i + 1) * kPanelColumns, dequantize<true>(words, params));
        }
      }
    });
  }
}

// totals[r][kPanelColumns] += x[r][0 .. length) @ panel for Rows rows of x, which lie `stride` apart. Not inlined: the
// caller's constants would take a register, and one sum would live in memory (two thirds of the speed).
template <int Rows>
__attribute__((noinline)) void multiply(const float* x, int64_t stride, const float* panel, int64_t length,
                                        float* totals) {
  Vec sums[Rows][kVecs] = {};
  for (int64_t k = 0; k < length; ++k) {
    Vec weights[kVecs];
    for (int v = 0; v < kVecs; ++v) weights[v] = load(panel + k * kPanelColumns + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const float value = x[r * stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sums[r][v] += weights[v] * value;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      float* total = totals + r * kPanelColumns + v * kWidth;
      store(total, load(total) + sums[r][v]);
    }
  }
}

template <int Rows = kRows>
void multiply_rows(int64_t rows, const float* x, int64_t stride, const float* panel, int64_t length, float* totals) {
  if (rows == Rows) return multiply<Rows>(x, stride, panel, length, totals);
  if constexpr (Rows > 1) multiply_rows<Rows - 1>(rows, x, stride, panel, length, totals);
}

// All of K for the rows [row, row + rows) and one panel of columns.
void multiply_block(const W4A16Args& a, const float* x, int64_t row, int64_t rows, int64_t column) {
  alignas(64) float panel[kChunk * kPanelColumns];
  alignas(64) float totals[kRowBlock * kPanelColumns];
  for (int64_t i = 0; i < rows * kPanelColumns; i += kWidth) store(totals + i, Vec{});
  for (int64_t chunk = 0; chunk < a.k; chunk += kChunk) {
    const int64_t length = a.k - chunk < kChunk ? a.k - chunk : kChunk;
    dequantize_panel(a, column, chunk, chunk + length, panel);
    for (int64_t r = 0; r < rows; r += kRows) {
      multiply_rows(rows - r < kRows ? rows - r : kRows, x + (row + r) * a.k + chunk, a.k, panel, length,
                    totals + r * kPanelColumns);
    }
  }
  const int64_t count = a.n - column < kPanelColumns ? a.n - column : kPanelColumns;
  for (int64_t r = 0; r < rows; ++r) {
    store_sums(a.y, a.bias, a.dtype, (row + r) * a.n + column, column, totals + r * kPanelColumns, count);
  }
}

}  // namespace

void w4a16_gemm(const W4A16Args& args) {
  const float* x = to_floats(args.x, args.dtype, args.scratch, args.m * args.k);
  const int64_t panels = (args.n + kPanelColumns - 1) / kPanelColumns;
  const int64_t row_blocks = (args.m + kRowBlock - 1) / kRowBlock;
  parallel_for(panels * row_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / panels * kRowBlock;
      const int64_t rows = args.m - row < kRowBlock ? args.m - row : kRowBlock;
      multiply_block(args, x, row, rows, i % panels * kPanelColumns);
    }
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
