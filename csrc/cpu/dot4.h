// dot4.h — sums of four products of bytes per 32-bit lane: what the int8 kernels are made of.
#pragma once

#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

// sums + for every lane: the 4 codes (bytes, 0..15) times the 4 signed bytes of `x`, all lanes with the same x.
inline IntVec dot4(IntVec sums, UintVec codes, int32_t x) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVXVNNI__)
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)codes, _mm256_set1_epi32(x));
#elif defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, (int8x16_t)codes, vreinterpretq_s8_s32(vdupq_n_s32(x)));  // up to 15: the same signed
#elif defined(__AVX2__)
  // 2 * 15 * 127 fits in 16 bits: nothing saturates
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x));
  return sums + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  for (int shift = 0; shift < 32; shift += 8) {
    sums += (IntVec)((codes >> shift) & 0xFF) * int32_t(int8_t(uint32_t(x) >> shift));
  }
  return sums;
#endif
}

// The same for codes 0..255. Where sums of two such products would not fit in 16 bits, kMiddleCode is taken off each
// code first, and where codes have to be signed; kMiddleInDot is what is still on it.
#if defined(__ARM_FEATURE_DOTPROD) || (defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__))
constexpr int kMiddleInDot = 0;
#else
constexpr int kMiddleInDot = kMiddleCode;
#endif

inline IntVec dot4_of_bytes(IntVec sums, UintVec codes, int32_t x) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  return dot4(sums, codes, x);
#elif defined(__ARM_FEATURE_DOTPROD)
  return dot4(sums, codes ^ 0x80808080u, x);
#elif defined(__AVX2__)
  const __m256i weights = (__m256i)(codes ^ 0x80808080u);  // signed now; |w| * |x| * 2 is at most 2 * 128 * 127
  const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32(x), weights);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_x);
  return sums + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  return dot4(sums, codes, x);
#endif
}

// -zero * sum, for zeros of up to 255 and sums of up to 128 signed bytes: both fit in 16 bits.
inline IntVec without_zero(IntVec zero, int32_t sum) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32(__m512i{}, (__m512i)zero, _mm512_set1_epi32(-sum & 0xFFFF));
#elif defined(__AVX2__)
  return (IntVec)_mm256_madd_epi16((__m256i)zero, _mm256_set1_epi32(-sum & 0xFFFF));
#else
  return zero * -sum;
#endif
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
