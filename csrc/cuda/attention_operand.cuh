// attention_operand.cuh — keys and values of a tile in shared memory as B operands of the tensor cores, elements of 8
// bits made of 16 on the way.
//
// A lane's 16-bit word of a matrix in shared memory holds two elements; of 8 bits it holds four, of which the even two
// become one operand word and the odd two another. So within 16 elements the even ones come before the odd ones: the
// queries are stored in that order, and of the result a lane holds four neighbours. It knows no softmax.
#pragma once

#include "attention_shape.cuh"
#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstring>
#include <type_traits>

namespace tinyserve::cuda {

// Two floats as an operand word, `low` in its low half.
template <typename T>
__device__ inline uint32_t pack_pair(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof bits);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof bits);
  }
  return bits;
}

// Both halves of a word times a power of two, exactly; minus a number, exactly.
template <typename Pair>
__device__ inline uint32_t times(uint32_t word, uint32_t factor) {
  Pair a, b;
  memcpy(&a, &word, sizeof a);
  memcpy(&b, &factor, sizeof b);
  a = __hmul2(a, b);
  memcpy(&word, &a, sizeof a);
  return word;
}
__device__ inline uint32_t minus(uint32_t word, uint32_t number) {
  __half2 a, b;
  memcpy(&a, &word, sizeof a);
  memcpy(&b, &number, sizeof b);
  a = __hsub2(a, b);
  memcpy(&word, &a, sizeof a);
  return word;
}

// The four elements of 8 bits in `word` as T, exactly: even[0] is bytes 0 and 2, the other bytes 1 and 3.
template <typename T, typename Cache>
__device__ inline void widen(uint32_t word, uint32_t& even, uint32_t& odd) {
  constexpr int kAndXor = (0xF0 & 0xCC) ^ 0xAA, kAndOr = (0xF0 & 0xCC) | 0xAA;
  if constexpr (std::is_same_v<Cache, int8_t> && std::is_same_v<T, __half>) {
    even = minus(lop3<kAndXor>(word, 0x00ff00ff, 0x64806480), 0x64806480);  // 1024 + 128 + code, less 1152
    odd = minus(lop3<kAndXor>(word >> 8, 0x00ff00ff, 0x64806480), 0x64806480);
  } else if constexpr (std::is_same_v<Cache, int8_t>) {
    uint32_t bits[4];  // of floats, whose low half is 0: seven bits are all that a code below 2^8 needs after the first
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t magic = ((word ^ 0x80808080) >> (8 * i) & 0xff) | 0x4b000000;  // 2^23 + 128 + code
      bits[i] = __float_as_uint(__uint_as_float(magic) - 8388736.f);
    }
    even = bits[0] >> 16 | bits[2];
    odd = bits[1] >> 16 | bits[3];
  } else if constexpr (std::is_same_v<T, __half>) {  // e4m3: exponent and mantissa moved, and 2^8 for the bias
    even = times<__half2>(lop3<kAndOr>(word << 8, 0x80008000, word << 7 & 0x3f803f80), 0x5c005c00);
    odd = times<__half2>(lop3<kAndOr>(word, 0x80008000, word >> 1 & 0x3f803f80), 0x5c005c00);
  } else {  // 2^120 for the bias
    even = times<__nv_bfloat162>(lop3<kAndOr>(word << 8, 0x80008000, word << 4 & 0x07f007f0), 0x7b807b80);
    odd = times<__nv_bfloat162>(lop3<kAndOr>(word, 0x80008000, word >> 4 & 0x07f007f0), 0x7b807b80);
  }
}

// Two neighbouring chunks of 16 bytes of 16 keys, as operands. kSteps 16-element parts of the heads; of each two 8-wide
// operands: for scores, keys 0..7 and 8..15; for values, the first 8 elements and the last 8 (of 8 bits: the even ones
// and the odd ones).
template <typename Shape>
struct KeyOperands {
  using T = typename Shape::T;
  using Cache = typename Shape::Cache;
  static constexpr int kSteps = Shape::kHasScales ? 2 : 1;
  uint32_t b[kSteps][2][2];

  // Elements down, keys across.
  __device__ void load_keys(char* tile, int first_key, int first_chunk) {
    const int lane = threadIdx.x % 32;
    uint32_t words[4];
    ldmatrix_x4(words, key_at<Shape>(tile, first_key + lane / 16 * 8 + lane % 8, first_chunk + lane / 8 % 2));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (Shape::kHasScales) {
          widen<T, Cache>(words[2 * n + i], b[i][n][0], b[i][n][1]);
        } else {
          b[0][n][i] = words[2 * n + i];
        }
      }
    }
  }

  // Keys down, elements across.
  __device__ void load_values(char* tile, int first_key, int first_chunk) {
    const int lane = threadIdx.x % 32;
    uint32_t words[4];
    ldmatrix_x4_trans(words, key_at<Shape>(tile, first_key + lane % 16, first_chunk + lane / 16));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // of the keys
        if constexpr (Shape::kHasScales) {
          widen<T, Cache>(words[2 * i + half], b[i][0][half], b[i][1][half]);
        } else {
          b[0][i][half] = words[2 * i + half];
        }
      }
    }
  }
};

}  // namespace tinyserve::cuda
