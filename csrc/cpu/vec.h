// vec.h — one vector of floats as wide as the instruction set, and how 16-bit floats become such vectors and back.
//
// Included by cpu/<op>.cpp, which setup.py compiles once per instruction set with TINYSERVE_ISA naming it and
// TINYSERVE_WIDTH floats per vector. Portable code has the width of AVX-512, so its 16-wide paths run on every machine.
// Vec is a GCC/Clang vector: + - * / and comparisons work per lane, and a * b + c becomes an FMA where there is one.
#pragma once

#include "../kernels.h"

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace tinyserve::cpu::TINYSERVE_ISA {

constexpr int kWidth = TINYSERVE_WIDTH;
#if defined(__AVX512F__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int kRegisters = 32;  // vectors of kWidth floats that the processor holds
#elif defined(__AVX2__)
constexpr int kRegisters = 16;
#else
constexpr int kRegisters = 4;
#endif

using Vec = float __attribute__((vector_size(kWidth * 4)));
using IntVec = int32_t __attribute__((vector_size(kWidth * 4)));
using UintVec = uint32_t __attribute__((vector_size(kWidth * 4)));
using ShortVec = uint16_t __attribute__((vector_size(kWidth * 2)));
using ByteVec = uint8_t __attribute__((vector_size(kWidth)));
using SignedByteVec = int8_t __attribute__((vector_size(kWidth)));

// Whether packed weights are read again before others have taken their place in the caches.
enum class Reuse { kNone, kSoon };

// Asks for packed weights 4 or 8 KB ahead: the processor's own prefetching leaves a fourth of the time of 16 rows
// waiting for memory (Zen 5). Tiles follow each other, so this reaches into the next one. What is read once goes past
// the larger caches, whose lines need not give way to it: 52 in the place of 48 GB/s.
template <Reuse kReuse>
inline void prefetch_words(const uint32_t* at) {
  if constexpr (kReuse == Reuse::kNone) {
    __builtin_prefetch(at + 1024, 0, 0);
  } else {
    __builtin_prefetch(at + 2048);
  }
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline Vec broadcast(float value) { return value - Vec{}; }  // minus: -0 keeps its sign
inline Vec as_float(UintVec bits) { return reinterpret_cast<Vec>(bits); }
inline UintVec as_bits(Vec value) { return reinterpret_cast<UintVec>(value); }

// mask lanes are 0 or all ones, as comparisons give them
inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline UintVec select(IntVec mask, UintVec yes, UintVec no) { return mask ? yes : no; }

template <typename T>
T load_as(const void* from) {  // unaligned
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

// fp16 <-> fp32, rounding to nearest even as the hardware does
inline Vec half_to_float(ShortVec h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#elif defined(__ARM_FEATURE_DOTPROD)
  return vcvt_f32_f16((float16x4_t)h);
#else
  const UintVec wide = __builtin_convertvector(h, UintVec);
  const UintVec magnitude = (wide & 0x7FFF) << 13;
  const UintVec scaled =
      as_bits(as_float(magnitude) * 0x1p112f);  // moves the exponent's bias; subnormals come out right
  const UintVec infinite = select(magnitude >= 0x0F800000, UintVec{} + 0x7F800000, UintVec{});
  return as_float(((wide & 0x8000) << 16) | scaled | infinite);
#endif
}

inline ShortVec float_to_half(Vec value) {
#if defined(__AVX512F__)
  return (ShortVec)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (ShortVec)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__ARM_FEATURE_DOTPROD)
  return (ShortVec)vcvt_f16_f32(value);
#else
  // Adding a power of two 2^13 times the value's own makes fp32 addition round at fp16's last bit (at least 2^-24).
  const UintVec bits = as_bits(value), twice = bits << 1;
  const UintVec exponent = twice & 0xFF000000u;
  const UintVec bias = select(exponent < 0x71000000u, UintVec{} + 0x71000000u, exponent);
  const Vec magnitude = as_float(bits & 0x7FFFFFFFu) * 0x1p112f * 0x1p-110f;  // infinite from 65520 on
  const UintVec rounded = as_bits(as_float((bias >> 1) + 0x07800000u) + magnitude);
  const UintVec finite = ((rounded >> 13) & 0x7C00u) + (rounded & 0x0FFFu);
  const UintVec result = select(twice > 0xFF000000u, UintVec{} + 0x7E00u, finite);
  return __builtin_convertvector(((bits >> 16) & 0x8000u) | result, ShortVec);
#endif
}

inline Vec bfloat16_to_float(ShortVec h) {
#if defined(__AVX512F__)
  return as_float((UintVec)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#elif defined(__AVX2__)
  return as_float((UintVec)_mm256_cvtepu16_epi32((__m128i)h) << 16);
#else
  return as_float(__builtin_convertvector(h, UintVec) << 16);
#endif
}

inline ShortVec float_to_bfloat16(Vec value) {
  const UintVec bits = as_bits(value);
  const UintVec rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const UintVec quiet = (bits >> 16) | 0x40;  // a NaN must not round to infinity
  return __builtin_convertvector(select((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded), ShortVec);
}

inline IntVec bytes_to_int(const uint8_t* from) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtepu8_epi32(load_as<__m128i>(from));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  return __builtin_convertvector(load_as<ByteVec>(from), IntVec);
#endif
}

// kWidth elements of any activation dtype, from and to any address
inline Vec load(const float* from) { return load_as<Vec>(from); }
inline Vec load(const Half* from) { return half_to_float(load_as<ShortVec>(from)); }
inline Vec load(const BFloat16* from) { return bfloat16_to_float(load_as<ShortVec>(from)); }

inline Vec load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return __builtin_convertvector(load_as<SignedByteVec>(from), Vec);
#endif
}

inline void store(float* to, Vec value) { memcpy(to, &value, sizeof value); }
inline void store(Half* to, Vec value) {
  const ShortVec bits = float_to_half(value);
  memcpy(to, &bits, sizeof bits);
}
inline void store(BFloat16* to, Vec value) {
  const ShortVec bits = float_to_bfloat16(value);
  memcpy(to, &bits, sizeof bits);
}

// The first `count` < kWidth elements; the lanes past them are 0 and are not stored.
template <typename T>
Vec load_first(const T* from, int64_t count) {
  T padded[kWidth] = {};
  memcpy(padded, from, count * sizeof(T));
  return load(padded);
}
template <typename T>
void store_first(T* to, Vec value, int64_t count) {
  T padded[kWidth];
  store(padded, value);
  memcpy(to, padded, count * sizeof(T));
}

constexpr float kMaxCode = 127.0f;  // of int8, so that codes are symmetric

// To the nearest integer, ties to even, for |x| below 2^22.
inline IntVec round_to_int(Vec x) {
  return (IntVec)(x + 12582912.0f) - int32_t(0x4B400000);  // adding 1.5 * 2^23 leaves the integer in the lowest bits
}

// As much of a vector as is left: all of it where count >= kWidth, else the first `count` elements.
template <typename T>
Vec load_part(const T* from, int64_t count) {
  return count >= kWidth ? load(from) : load_first(from, count);
}
template <typename T>
void store_part(T* to, Vec value, int64_t count) {
  count >= kWidth ? store(to, value) : store_first(to, value, count);
}

// Sums and maxima over the lanes, in halves: the order does not depend on anything but kWidth.
inline float sum(Vec value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}
inline float max(Vec value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] < lanes[i + half] ? lanes[i + half] : lanes[i];
  return lanes[0];
}

// Calls f with a null pointer of the element type: dispatch(args.dtype, [&](auto* t) { run<std::remove_pointer_t<...>>;
// }).
template <typename F>
void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(static_cast<float*>(nullptr));
    case Dtype::kHalf:
      return f(static_cast<Half*>(nullptr));
    case Dtype::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
