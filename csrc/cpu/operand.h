// operand.h — what the products of panels.h multiply: floats; pairs of bf16, where the processor sums two products of
// them at once; or pairs of int16, of what was rounded to 15 bits and a cache of int8. Sums are fp32, those of integers
// exact int32.
#pragma once

#include "vec.h"

#include <type_traits>

namespace tinyserve::cpu::TINYSERVE_ISA {

// Two steps of depth: the even one in the low half, the odd one in the high half.
struct Pair {  // of bf16
  uint32_t bits;
};
struct IntPair {  // of int16
  uint32_t bits;
};

template <typename Operand>
constexpr int64_t kDepth = std::is_same_v<Operand, float> ? 1 : 2;  // steps of depth in one operand
template <typename Operand>
using OperandVec = std::conditional_t<std::is_same_v<Operand, float>, Vec, UintVec>;
template <typename Operand>
using SumVec = std::conditional_t<std::is_same_v<Operand, IntPair>, IntVec, Vec>;

inline Vec as_floats(Vec sums) { return sums; }
inline Vec as_floats(IntVec sums) { return __builtin_convertvector(sums, Vec); }

inline Vec multiply_add(Vec sums, float x, Vec column) { return sums + broadcast(x) * column; }

#if defined(__AVX512VNNI__)
inline IntVec multiply_add(IntVec sums, IntPair x, UintVec column) {
  return (IntVec)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)column, _mm512_set1_epi32(int(x.bits)));
}

// a[0], b[0], a[1], b[1], ... as kWidth pairs each in low and high.
inline void interleave(UintVec a, UintVec b, UintVec& low, UintVec& high) {
  using Order = uint16_t __attribute__((vector_size(64)));
  Order first, second;
  for (int i = 0; i < 32; ++i) {
    first[i] = uint16_t(i / 2 + i % 2 * 32);
    second[i] = uint16_t(16 + i / 2 + i % 2 * 32);
  }
  low = (UintVec)_mm512_permutex2var_epi16((__m512i)a, (__m512i)first, (__m512i)b);
  high = (UintVec)_mm512_permutex2var_epi16((__m512i)a, (__m512i)second, (__m512i)b);
}

// 2 * kWidth elements as kWidth pairs
inline UintVec load_pairs(const int8_t* from) { return (UintVec)_mm512_cvtepi8_epi16(load_as<__m256i>(from)); }
#elif defined(__AVX2__)
inline IntVec multiply_add(IntVec sums, IntPair x, UintVec column) {
  return sums + (IntVec)_mm256_madd_epi16((__m256i)column, _mm256_set1_epi32(int(x.bits)));
}

inline void interleave(UintVec a, UintVec b, UintVec& low, UintVec& high) {
  const __m256i even = _mm256_unpacklo_epi16((__m256i)a, (__m256i)b);  // elements 0..3 and 8..11
  const __m256i odd = _mm256_unpackhi_epi16((__m256i)a, (__m256i)b);   // the others
  low = (UintVec)_mm256_permute2x128_si256(even, odd, 0x20);
  high = (UintVec)_mm256_permute2x128_si256(even, odd, 0x31);
}

inline UintVec load_pairs(const int8_t* from) { return (UintVec)_mm256_cvtepi8_epi16(load_as<__m128i>(from)); }
#endif

#if defined(__AVX512BF16__)
inline Vec multiply_add(Vec sums, Pair x, UintVec column) {
  return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)column, (__m512bh)_mm512_set1_epi32(int(x.bits)));
}

inline UintVec load_pairs(const BFloat16* from) { return load_as<UintVec>(from); }

constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif
#if defined(__AVX2__)
constexpr bool kHasIntPairs = true;
#else
constexpr bool kHasIntPairs = false;
#endif

// Of activations T and a cache of T or int8. Floats stay what they are.
template <typename T, typename Cache>
using OperandOf = std::conditional_t<
    kHasIntPairs && std::is_same_v<Cache, int8_t> && !std::is_same_v<T, float>, IntPair,
    std::conditional_t<kHasPairs && std::is_same_v<T, BFloat16> && std::is_same_v<Cache, BFloat16>, Pair, float>>;

constexpr float kMaxInt16 = 32767.0f;

// x [size] as int16 of steps of its largest magnitude over kMaxInt16, zeros up to a multiple of kWidth; returns the
// step. It is NaN where an element is NaN or infinite.
template <typename T>
float round_to_int16(const T* x, int64_t size, int16_t* codes) {
  Vec largest = {}, not_finite = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vec value = load_part(x + i, size - i), magnitude = value < 0.0f ? -value : value;
    largest = select(magnitude > largest, magnitude, largest);
    not_finite += value * 0.0f;
  }
  const float step = max(largest) / kMaxInt16 + sum(not_finite);
  const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
  for (int64_t i = 0; i < size; i += kWidth) {
    using Codes = int16_t __attribute__((vector_size(kWidth * 2)));
    const Codes rounded = __builtin_convertvector(round_to_int(load_part(x + i, size - i) * inverse), Codes);
    memcpy(codes + i, &rounded, sizeof rounded);
  }
  return step;
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
