// int8_product.h — y = int8(x) @ dequant(weight)^T for any number of rows; Columns says how the weight is packed.
//
// x becomes int8 once. Then blocks of rows meet one tile of columns: codes become bytes in registers and go into dot
// products of four, whose sums stay integers inside a group of x. At its end they join the row's fp32 total:
//   total += scale_w * scale_x * (sum(code * x) - zero * sum(x))
// Groups join in the order of k whatever the number of rows, so a row's result never depends on the rows beside it.
//
// Columns: at(args, column), load_integer_params(group), load_bytes<reuse>(k, even, odd) with codes of k, k + 2, k + 4,
// k + 6 and of the k between them, and dot(sums, codes, x).
#pragma once

#include "activations.h"
#include "dot4.h"
#include "int4.h"

#include <algorithm>

namespace tinyserve::cpu::TINYSERVE_ISA {

constexpr int kVecs = kPackColumns / kWidth < 2 ? 1 : 2;               // vectors of columns at once
constexpr int kRows = kRegisters < 16 ? 2 : kRegisters < 32 ? 4 : 12;  // with kVecs each, the sums that registers hold
constexpr int64_t kRowBytes = 512 << 10;  // of x in one round over the columns: it stays in the second-level cache

// Elements of a weight that is not in the last-level cache when a step comes to it again. Of a model whose weights are
// smaller, a part is.
constexpr int64_t kLargeWeight = 4 << 20;

// At most kRows rows of x as a product reads them, one stream: rows that lay K bytes apart would meet in one set of the
// first-level cache where K is a multiple of 4096.
struct RowBlock {
  int8_t* codes;      // [K/8][rows][8]; of 8 consecutive k first the even ones, then the odd ones
  Int8Group* groups;  // [K/A][rows]
  int64_t rows;

  // Of all blocks but the last, which may have fewer: as many as make them about equal.
  static int64_t size(const Int8LinearArgs& a) {
    const int64_t blocks = (a.m + kRows - 1) / kRows;
    return (a.m + blocks - 1) / blocks;
  }
  static RowBlock at(const Int8LinearArgs& a, int64_t row, int64_t size) {
    return {a.codes + row * a.k, a.groups + row * (a.k / a.x_group), a.m - row < size ? a.m - row : size};
  }
};

// One group of a row: codes, 8 of them every `stride` bytes, their sum and their scale. A NaN or infinity makes that
// NaN.
template <typename T>
inline Int8Group quantize_group(const T* x, int64_t size, int8_t* codes, int64_t stride) {
  Vec largest = {}, not_finite = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vec value = load(x + i), magnitude = value < 0.0f ? -value : value;
    largest = select(magnitude > largest, magnitude, largest);
    not_finite += value * 0.0f;
  }
  const float scale = max(largest) / kMaxCode + sum(not_finite);
  const float inverse = scale >= __FLT_MIN__ ? 1.0f / scale : 0.0f;  // finite
  IntVec order;
  UintVec total = {};  // what is not finite becomes any integer, whose sum may wrap
  for (int i = 0; i < kWidth; ++i) order[i] = i / 8 * 8 + i % 4 * 2 + i / 4 % 2;
  for (int64_t i = 0; i < size; i += kWidth) {
    const IntVec rounded = round_to_int(load(x + i) * inverse);
    total += reinterpret_cast<UintVec>(rounded);
    int8_t* to = codes + i / 8 * stride;
    if constexpr (kWidth < 8) {
      for (int64_t j = i; j < i + kWidth; ++j) to[j % 8 / 2 + j % 2 * 4] = int8_t(rounded[j - i]);
    } else {
      const SignedByteVec bytes = __builtin_convertvector(__builtin_shuffle(rounded, order), SignedByteVec);
      for (int j = 0; j < kWidth / 8; ++j) memcpy(to + j * stride, reinterpret_cast<const int8_t*>(&bytes) + j * 8, 8);
    }
  }
  if (scale != scale) return {scale, 0};
  return {scale, int32_t(sum(__builtin_convertvector(reinterpret_cast<IntVec>(total), Vec)))};  // at most 127 * 128
}

inline void quantize_rows(const Int8LinearArgs& a) {
  const int64_t groups = a.k / a.x_group, size = RowBlock::size(a);
  dispatch(a.dtype, [&]<typename T>(T*) {
    parallel_for(a.m * groups, 1 + 16384 / a.x_group, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / groups, group = i % groups, place = row % size;
        const RowBlock block = RowBlock::at(a, row - place, size);
        block.groups[group * block.rows + place] =
            quantize_group(static_cast<const T*>(a.x) + i * a.x_group, a.x_group,
                           block.codes + (group * a.x_group / 8 * block.rows + place) * 8, block.rows * 8);
      }
    });
  });
}

// The `Rows` rows of the block that begins with `row` by kVecs vectors of columns from `column`.
template <typename Columns, int Rows, Reuse kReuse>
__attribute__((noinline)) void multiply(const Int8LinearArgs& a, int64_t row, int64_t column) {
  Columns columns[kVecs];
  for (int v = 0; v < kVecs; ++v) columns[v] = Columns::at(a, column + v * kWidth);
  const RowBlock block = RowBlock::at(a, row, Rows);
  const int8_t* x = block.codes;
  const Int8Group* x_groups = block.groups;

  Vec totals[Rows][kVecs] = {};
  const int64_t groups = a.k / a.group_size, parts = a.group_size / a.x_group;  // of a group: groups of x in it
  for (int64_t group = 0, k = 0; group < groups; ++group) {
    IntegerParams params[kVecs];
    for (int v = 0; v < kVecs; ++v) params[v] = columns[v].load_integer_params(group);
    for (int64_t part = 0; part < parts; ++part, x_groups += Rows) {
      IntVec sums[Rows][kVecs];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) sums[r][v] = without_zero(params[v].zero, x_groups[r].sum);
      }
      for (const int64_t end = k + a.x_group; k < end; k += kPackFactor, x += Rows * 8) {
        UintVec low[kVecs], high[kVecs];
        for (int v = 0; v < kVecs; ++v) columns[v].template load_bytes<kReuse>(k, low[v], high[v]);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          const int32_t even = load_as<int32_t>(x + r * 8), odd = load_as<int32_t>(x + r * 8 + 4);
#pragma GCC unroll 2
          for (int v = 0; v < kVecs; ++v) {
            sums[r][v] = Columns::dot(Columns::dot(sums[r][v], low[v], even), high[v], odd);
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
          totals[r][v] += __builtin_convertvector(sums[r][v], Vec) * (params[v].scale * x_groups[r].scale);
        }
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

template <typename Columns, Reuse kReuse, int Rows = kRows>
void multiply_block(const Int8LinearArgs& a, int64_t row, int64_t rows, int64_t column) {
  if (rows == Rows) return multiply<Columns, Rows, kReuse>(a, row, column);
  if constexpr (Rows > 1) multiply_block<Columns, kReuse, Rows - 1>(a, row, rows, column);
}

template <typename Columns>
void int8_product(const Int8LinearArgs& args) {
  quantize_rows(args);
  const int64_t panels = (args.n + kVecs * kWidth - 1) / (kVecs * kWidth), block = RowBlock::size(args);
  const int64_t fitting = kRowBytes / args.k / block * block, round = fitting < block ? block : fitting;
  const int64_t rounds = (args.m + round - 1) / round;
  const bool past_caches = args.m == block && args.n * args.k >= kLargeWeight;
  const int64_t grain = 1 + 400000 / (args.k * kVecs * kWidth * std::min(args.m, round));  // about 10 us of work
  parallel_for(panels * rounds, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / panels * round, column = i % panels * kVecs * kWidth;
      for (int64_t row = first; row < std::min(first + round, args.m); row += block) {
        const int64_t rows = std::min(block, args.m - row);
        if (past_caches) {
          multiply_block<Columns, Reuse::kNone>(args, row, rows, column);
        } else {
          multiply_block<Columns, Reuse::kSoon>(args, row, rows, column);
        }
      }
    }
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
