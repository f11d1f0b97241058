// packed.cuh — a packed weight (layout: kernels.h) as the kernels read it: where things are, and a lane's word of eight
// codes as the A operand of a 16 x 16 tile.
//
// A code becomes a float without a conversion: its four bits go into the low bits of a number whose unit is one, 1024
// or 64 in fp16, 128 in bf16; subtracting that number plus the zero leaves code - zero, exactly. Knows no kernel.
#pragma once

#include "../kernels.h"
#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

namespace tinyserve::cuda {

constexpr int kTile = 16;                        // rows n of a tile; also columns k of one word
constexpr int kTileWords = kPackBlock / kTile;   // of a lane, for the 64 k of a block: 16 bytes
constexpr int kTileBytes = kTileWords * 4 * 32;  // of a tile in a block
constexpr int kBlockBytes = kTileBytes * kPackBlock / kTile;
constexpr int kParamBytes = kPackBlock * 4;  // of a group of 64 rows

// Groups that qparams holds for each row.
__host__ __device__ inline int64_t packed_groups(int64_t k, int64_t group_size) {
  return ((k + kPackBlock - 1) / kPackBlock * kPackBlock + group_size - 1) / group_size;
}

// Where in the 64 words of a group the one of `row` (0..63) is.
__host__ __device__ inline int param_position(int row) { return row / kTile * kTile + row % 8 * 2 + row % kTile / 8; }

template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

template <typename T>
__device__ inline Pair<T> as_pair(uint32_t bits) {
  Pair<T> pair;
  memcpy(&pair, &bits, sizeof bits);
  return pair;
}
template <typename T>
__device__ inline uint32_t as_bits(Pair<T> pair) {
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

template <typename T>
__device__ inline Pair<T> twice(T value) {
  return Pair<T>{value, value};
}

// What a lane needs of the params of rows r and r + 8, .x and .y of the eight bytes at position 2 * (r % 8).
template <typename T>
struct RowParams {
  uint32_t offsets[2];  // what is subtracted from the codes of row r, of row r + 8; twice in a word

  // The upper half of a word is the zero, and nothing above it.
  __device__ explicit RowParams(uint2 params) {
    if constexpr (std::is_same_v<T, __half>) {
      offsets[0] = (params.x >> 16) * 0x00010001 + 0x64006400;  // 1024 + zero
      offsets[1] = (params.y >> 16) * 0x00100010 + 0x54005400;  // 64 + zero
    } else {
      offsets[0] = (params.x >> 16) * 0x00010001 + 0x43004300;  // 128 + zero
      offsets[1] = (params.y >> 16) * 0x00010001 + 0x43004300;
    }
  }
};

// The eight codes of `word`, in the order of the tensor cores' A operand, each plus the number it was placed in.
template <typename T>
__device__ inline void place_codes(uint32_t (&a)[4], uint32_t word) {
  constexpr int kAndOr = (0xF0 & 0xCC) | 0xAA;
  if constexpr (std::is_same_v<T, __half>) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // nibbles 0, 4 and 1, 5; then 2, 6 and 3, 7
      const uint32_t bits = half ? word >> 8 : word;
      a[2 * half] = lop3<kAndOr>(bits, 0x000f000f, 0x64006400);
      a[2 * half + 1] = lop3<kAndOr>(bits, 0x00f000f0, 0x54005400);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = lop3<kAndOr>(word >> (4 * i), 0x000f000f, 0x43004300);
  }
}

// a = code - zero of the eight codes in `word`, in the order of the tensor cores' A operand.
template <typename T>
__device__ inline void dequantize(uint32_t (&a)[4], uint32_t word, const RowParams<T>& rows) {
  place_codes<T>(a, word);
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = as_bits<T>(__hsub2(as_pair<T>(a[i]), as_pair<T>(rows.offsets[i % 2])));
}

// The scale of one row, from its word of qparams: as a float, and twice in a word.
template <typename T>
__device__ inline float scale_of(uint32_t param) {
  const Pair<T> pair = as_pair<T>(param);
  return float(pair.x);
}
template <typename T>
__device__ inline uint32_t scale_pair(uint32_t param) {
  return permute_bytes<0x1010>(param, 0);
}

// a = (code - zero) * scale, rounded once; scales: scale_pair of row r and of row r + 8.
template <typename T>
__device__ inline void dequantize_scaled(uint32_t (&a)[4], uint32_t word, const RowParams<T>& rows,
                                         const uint32_t (&scales)[2]) {
  dequantize<T>(a, word, rows);
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = as_bits<T>(__hmul2(as_pair<T>(a[i]), as_pair<T>(scales[i % 2])));
}

// The same with scale and offset of a row in the halves of one word, which the multiplier takes as they are: half the
// registers of RowParams and scales.
template <typename T>
struct ScaledRows {
  uint32_t words[2];

  ScaledRows() = default;
  __device__ explicit ScaledRows(uint2 params) {
    if constexpr (std::is_same_v<T, __half>) {
      words[0] = params.x | 0x64000000;                                                // 1024 + zero
      words[1] = (params.y << 4 & 0x03f00000) | 0x54000000 | (params.y & 0x0000ffff);  // 64 + zero
    } else {
      words[0] = params.x | 0x43000000;  // 128 + zero
      words[1] = params.y | 0x43000000;
    }
  }
};
template <typename T>
__device__ inline void dequantize_scaled(uint32_t (&a)[4], uint32_t word, const ScaledRows<T>& rows) {
  place_codes<T>(a, word);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair<T> both = as_pair<T>(rows.words[i % 2]);
    const Pair<T> code = __hsub2(as_pair<T>(a[i]), twice<T>(both.y));
    a[i] = as_bits<T>(__hmul2(code, twice<T>(both.x)));
  }
}

}  // namespace tinyserve::cuda
