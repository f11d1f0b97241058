// int8_product.h — y = int8(x) @ dequant(weight)^T for any number of rows; Columns says how the weight is packed.
//
// x becomes int8 once. Then blocks of rows meet one tile of columns: codes become bytes in registers and go into dot
// products of four, whose sums stay integers inside a group of x. At its end they join the row's fp32 total:
//   total += scale_w * scale_x * sum(code * x) - zero * scale_w * scale_x * sum(x)
// Groups join in the order of k whatever the number of rows, so a row's result never depends on the rows beside it.
//
// Columns: at(args, column), load_params(group), load_bytes(k, even, odd) with codes of k, k + 2, k + 4, k + 6 and of
// the k between them, and dot(sums, codes, x).
#pragma once

#include "activations.h"
#include "dot4.h"
#include "int4.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

constexpr int kVecs = kPackColumns / kWidth < 2 ? 1 : 2;               // vectors of columns at once
constexpr int kRows = kRegisters < 16 ? 2 : kRegisters < 32 ? 4 : 12;  // with kVecs each, the sums that registers hold
constexpr int64_t kRowBytes = 512 << 10;  // of x in one block of rows: it stays in the second-level cache
// One group of a row: codes, scale, and scale * sum of the codes. A NaN or infinity makes the scale NaN.
template <typename T>
inline void quantize_group(const T* x, int64_t size, int8_t* codes, float* params) {
  Vec largest = {}, not_finite = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vec value = load(x + i), magnitude = value < 0.0f ? -value : value;
    largest = select(magnitude > largest, magnitude, largest);
    not_finite += value * 0.0f;
  }
  const float scale = max(largest) / kMaxCode + sum(not_finite);
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  IntVec order, total = {};
  for (int i = 0; i < kWidth; ++i) order[i] = i / 8 * 8 + i % 4 * 2 + i / 4 % 2;
  for (int64_t i = 0; i < size; i += kWidth) {
    const IntVec rounded = round_to_int(load(x + i) * inverse);
    total += rounded;
    if constexpr (kWidth < 8) {
      for (int64_t j = i; j < i + kWidth; ++j) codes[j / 8 * 8 + j % 8 / 2 + j % 2 * 4] = int8_t(rounded[j - i]);
    } else {
      const SignedByteVec bytes = __builtin_convertvector(__builtin_shuffle(rounded, order), SignedByteVec);
      memcpy(codes + i, &bytes, sizeof bytes);
    }
  }
  params[0] = scale;
  params[1] = scale * sum(__builtin_convertvector(total, Vec));  // at most 127 * 64: exact
}

inline void quantize_rows(const Int8LinearArgs& a) {
  const int64_t groups = a.k / a.x_group;
  dispatch(a.dtype, [&]<typename T>(T*) {
    parallel_for(a.m * groups, 1 + 16384 / a.x_group, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        quantize_group(static_cast<const T*>(a.x) + i * a.x_group, a.x_group, a.codes + i * a.x_group,
                       a.params + i * 2);
      }
    });
  });
}

// Rows [row, row + Rows) by kVecs vectors of columns from `column`.
template <typename Columns, int Rows>
__attribute__((noinline)) void multiply(const Int8LinearArgs& a, int64_t row, int64_t column) {
  Columns columns[kVecs];
  for (int v = 0; v < kVecs; ++v) columns[v] = Columns::at(a, column + v * kWidth);
  const int8_t* x = a.codes + row * a.k;
  const float* x_params = a.params + row * (a.k / a.x_group) * 2;

  Vec totals[Rows][kVecs] = {};
  GroupParams params[kVecs];
  for (int64_t begin = 0; begin < a.k; begin += a.x_group) {
    if (begin % a.group_size == 0) {
      for (int v = 0; v < kVecs; ++v) params[v] = columns[v].load_params(begin / a.group_size);
    }
    IntVec sums[Rows][kVecs] = {};
    for (int64_t k = begin; k < begin + a.x_group; k += kPackFactor) {
      UintVec low[kVecs], high[kVecs];
      for (int v = 0; v < kVecs; ++v) columns[v].load_bytes(k, low[v], high[v]);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const int32_t even = load_as<int32_t>(x + r * a.k + k), odd = load_as<int32_t>(x + r * a.k + k + 4);
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
          sums[r][v] = Columns::dot(Columns::dot(sums[r][v], low[v], even), high[v], odd);
        }
      }
    }
    const float* group_params = x_params + begin / a.x_group * 2;
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const float scale = group_params[r * (a.k / a.x_group) * 2], sum = group_params[r * (a.k / a.x_group) * 2 + 1];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        totals[r][v] += __builtin_convertvector(sums[r][v], Vec) * (params[v].scale * scale);
        totals[r][v] += params[v].offset * sum;
      }
    }
  }

  const int64_t count = a.n - column < kVecs * kWidth ? a.n - column : kVecs * kWidth;
  for (int r = 0; r < Rows; ++r) {
    float values[kVecs * kWidth];
    for (int v = 0; v < kVecs; ++v) store(values + v * kWidth, totals[r][v]);
    store_sums(a.y, a.bias, a.dtype, (row + r) * a.n + column, column, values, count);
  }
}

template <typename Columns, int Rows = kRows>
void multiply_rows(const Int8LinearArgs& a, int64_t row, int64_t rows, int64_t column) {
  if (rows == Rows) return multiply<Columns, Rows>(a, row, column);
  if constexpr (Rows > 1) multiply_rows<Columns, Rows - 1>(a, row, rows, column);
}

template <typename Columns>
void int8_product(const Int8LinearArgs& args) {
  quantize_rows(args);
  const int64_t panels = (args.n + kVecs * kWidth - 1) / (kVecs * kWidth);
  const int64_t fitting = kRowBytes / args.k / kRows * kRows, row_block = fitting < kRows ? kRows : fitting;
  const int64_t row_blocks = (args.m + row_block - 1) / row_block;
  const int64_t rows = args.m < row_block ? args.m : row_block;
  const int64_t grain = 1 + 400000 / (args.k * kVecs * kWidth * rows);  // about 10 us of work
  parallel_for(panels * row_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / panels * row_block;
      const int64_t last = first + row_block < args.m ? first + row_block : args.m;
      for (int64_t row = first; row < last; row += kRows) {
        multiply_rows<Columns>(args, row, last - row < kRows ? last - row : kRows, i % panels * kVecs * kWidth);
      }
    }
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
