// linear.cpp — y = x @ weight^T with plain weights of 16 or 32 bits, summed in fp32.
//
// Both operands lie along k, so sums are dot products: a few rows of x by a few rows of the weight at once, each vector
// loaded once for all of them. For few rows, 16-bit weights become floats on the way; for more, a block of them is
// converted once. The order of sums is the same everywhere: a row's result does not depend on the rows beside it.
#include "activations.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// Rows of x by rows of the weight whose sums fit the registers, beside the vectors they come from.
constexpr int kMaxRows = kRegisters < 16 ? 2 : 4;
constexpr int columns_for(int rows) { return kRegisters < 16 ? 1 : kRegisters == 32 ? 6 : rows == 4 ? 3 : 4; }

constexpr int64_t kChunk = 1024;   // k that are summed before they join the total: 4 KiB of a row, in fp32
constexpr int64_t kBlock = 24;     // rows of the weight converted at once; a multiple of all columns_for
constexpr int64_t kRowBlock = 64;  // rows of x that meet them: [64, kChunk] fp32 is 256 KiB

// totals[r * kBlock + c] += x[r] . weight[c] over `length` elements; rows lie a stride apart
template <int Rows, int Columns, typename T>
__attribute__((noinline)) void dot(const float* x, int64_t x_stride, const T* weight, int64_t weight_stride,
                                   int64_t length, float* totals) {
  Vec sums[Rows][Columns] = {};
  const auto step = [&](int64_t k, auto load_x, auto load_weight) {
    Vec rows[Rows];
    for (int r = 0; r < Rows; ++r) rows[r] = load_x(x + r * x_stride + k);
#pragma GCC unroll 6
    for (int c = 0; c < Columns; ++c) {
      const Vec column = load_weight(weight + c * weight_stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][c] += rows[r] * column;
    }
  };
  int64_t k = 0;
  for (; k + kWidth <= length; k += kWidth) {
    step(k, [](const float* from) { return load(from); }, [](const T* from) { return load(from); });
  }
  if (const int64_t rest = length - k; rest > 0) {
    step(
        k, [&](const float* from) { return load_first(from, rest); },
        [&](const T* from) { return load_first(from, rest); });
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c) totals[r * kBlock + c] += sum(sums[r][c]);
}

// The same for any number of columns up to kBlock.
template <int Rows, typename T>
void dot_columns(const float* x, int64_t x_stride, const T* weight, int64_t weight_stride, int64_t length,
                 int64_t columns, float* totals) {
  constexpr int kColumns = columns_for(Rows);
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) {
    dot<Rows, kColumns>(x, x_stride, weight + c * weight_stride, weight_stride, length, totals + c);
  }
  for (; c < columns; ++c) dot<Rows, 1>(x, x_stride, weight + c * weight_stride, weight_stride, length, totals + c);
}

// And for any number of rows up to kMaxRows.
template <typename T, int Rows = kMaxRows>
void dot_rows(int64_t rows, const float* x, int64_t x_stride, const T* weight, int64_t weight_stride, int64_t length,
              int64_t columns, float* totals) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return dot_rows<T, Rows - 1>(rows, x, x_stride, weight, weight_stride, length, columns, totals);
  }
  dot_columns<Rows>(x, x_stride, weight, weight_stride, length, columns, totals);
}

// All of K for the rows [row, row + rows) of x and [column, column + columns) of the weight.
template <typename T>
void multiply_block(const LinearArgs& a, const float* x, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  alignas(64) float converted[kBlock * kChunk];
  alignas(64) float totals[kRowBlock * kBlock] = {};
  const bool convert = rows > kMaxRows && sizeof(T) < sizeof(float);
  for (int64_t chunk = 0; chunk < a.k; chunk += kChunk) {
    const int64_t length = a.k - chunk < kChunk ? a.k - chunk : kChunk;
    const T* weight = static_cast<const T*>(a.weight) + column * a.k + chunk;
    for (int64_t c = 0; convert && c < columns; ++c) {
      for (int64_t k = 0; k < length; k += kWidth) {
        store_part(converted + c * kChunk + k, load_part(weight + c * a.k + k, length - k), length - k);
      }
    }
    for (int64_t r = 0; r < rows; r += kMaxRows) {
      const float* from = x + (row + r) * a.k + chunk;
      float* to = totals + r * kBlock;
      if (convert) {
        dot_rows(rows - r, from, a.k, converted, kChunk, length, columns, to);
      } else {
        dot_rows(rows - r, from, a.k, weight, a.k, length, columns, to);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    store_sums(a.y, a.bias, a.dtype, (row + r) * a.n + column, column, totals + r * kBlock, columns);
  }
}

template <typename T>
void run(const LinearArgs& a) {
  const float* x = to_floats(a.x, a.dtype, a.scratch, a.m * a.k);
  const int64_t blocks = (a.n + kBlock - 1) / kBlock;
  const int64_t row_blocks = (a.m + kRowBlock - 1) / kRowBlock;
  const int64_t grain = 1 + 200000 / (1 + a.k * kBlock * (a.m < kRowBlock ? a.m : kRowBlock));  // about 10 us of work
  parallel_for(blocks * row_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks * kRowBlock, column = i % blocks * kBlock;
      multiply_block<T>(a, x, row, a.m - row < kRowBlock ? a.m - row : kRowBlock, column,
                        a.n - column < kBlock ? a.n - column : kBlock);
    }
  });
}

}  // namespace

void linear(const LinearArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
