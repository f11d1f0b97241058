// intrinsics.h — functions that CUDA C++ has without a header for the host: atomics and some arithmetic.
#pragma once

#include "faults.h"
#include "grid.h"
#include "weak_stores.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace emulator {

// Others may go first, so that threads and blocks reach a counter in any order.
template <typename T, typename Change>
T atomic(T* at, const Change& change) {
  grid->yield();
  const T old = *at;
  *at = change(old);
  publish_atomic(at);
  return old;
}

}  // namespace emulator

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return T(old + value); });
}
template <typename T>
T atomicSub(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return T(old - value); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return old == expected ? value : old; });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return T(old | value); });
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return emulator::atomic(at, [&](T old) { return T(old & value); });
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
  return emulator::atomic(at, [&](unsigned old) { return old >= last ? 0 : old + 1; });
}

inline void __threadfence() { emulator::publish_stores(); }
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
inline float2 __ldcg(const float2* from) {
  return emulator::fault == emulator::Fault::kWeights ? make_float2(0.f, from->y) : *from;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(unsigned(bits)) + 1; }

inline float rsqrtf(float value) { return 1.f / sqrtf(value); }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.f / value; }

inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }

template <typename T>
constexpr T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  const float2 x = __bfloat1622float2(a), y = __bfloat1622float2(b), z = __bfloat1622float2(c);
  return __floats2bfloat162_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}
