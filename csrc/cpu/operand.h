// operand.h — what the products of panels.h multiply: floats, or, where the processor sums two products of bf16 at
// once, pairs of bf16. Either way sums are fp32.
#pragma once

#include "vec.h"

#include <type_traits>

namespace tinyserve::cpu::TINYSERVE_ISA {

// Two steps of depth: the even one in the low half, the odd one in the high half.
struct Pair {
  uint32_t bits;
};

template <typename Operand>
constexpr int64_t kDepth = std::is_same_v<Operand, Pair> ? 2 : 1;  // steps of depth in one operand
template <typename Operand>
using OperandVec = std::conditional_t<std::is_same_v<Operand, Pair>, UintVec, Vec>;

inline Vec multiply_add(Vec sums, float x, Vec column) { return sums + broadcast(x) * column; }

#if defined(__AVX512BF16__)
inline Vec multiply_add(Vec sums, Pair x, UintVec column) {
  return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)column, (__m512bh)_mm512_set1_epi32(int(x.bits)));
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

// 2 * kWidth elements as kWidth pairs; int8 becomes bf16 exactly
inline UintVec load_pairs(const BFloat16* from) { return load_as<UintVec>(from); }
inline UintVec load_pairs(const int8_t* from) {
  return (UintVec)_mm512_cvtne2ps_pbh((__m512)load(from + kWidth), (__m512)load(from));
}

template <typename T>
using OperandOf = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, float>;  // of activations T
#else
template <typename T>
using OperandOf = float;
#endif

}  // namespace tinyserve::cpu::TINYSERVE_ISA
