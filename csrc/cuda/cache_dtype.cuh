// cache_dtype.cuh — the elements of a KV cache: those of the activations, or 8 bits with a scale for every head of a
// token.
#pragma once

#include "../kernels.h"

#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace tinyserve::cuda {

using Float8 = __nv_fp8_e4m3;

// Calls f with a value of the cache's element type; T is that of the activations.
template <typename T, typename F>
void dispatch_cache(CacheDtype dtype, const F& f) {
  switch (dtype) {
    case CacheDtype::kActivations:
      return f(T{});
    case CacheDtype::kInt8:
      return f(int8_t{});
    case CacheDtype::kFloat8:
      return f(Float8{});
  }
}

template <typename Code>
constexpr float kLargestCode = 127.f;
template <>
inline constexpr float kLargestCode<Float8> = 448.f;

// The nearest code; `value` lies within +-kLargestCode but for rounding.
template <typename Code>
__device__ inline Code to_code(float value) {
  if constexpr (std::is_same_v<Code, Float8>) {
    return Code(value);
  } else {
    return Code(rintf(value));
  }
}

// An integer of as many bytes.
template <int Bytes>
struct BitsOf;
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
};

}  // namespace tinyserve::cuda
