// vec.cuh — several elements of any activation dtype at once, as floats: what a thread loads and stores in 16 bytes.
#pragma once

#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

namespace tinyserve::cuda {

template <typename T>
constexpr int kVecSize = 16 / sizeof(T);  // elements in 16 bytes

template <typename T>
struct Vec {
  float values[kVecSize<T>];
};

template <typename T>
__device__ inline Vec<T> from_bits(uint4 bits) {
  T elements[kVecSize<T>];
  memcpy(elements, &bits, sizeof bits);
  Vec<T> vec;
#pragma unroll
  for (int i = 0; i < kVecSize<T>; ++i) vec.values[i] = float(elements[i]);
  return vec;
}

template <typename T>
__device__ inline uint4 to_bits(const Vec<T>& vec) {
  T elements[kVecSize<T>];
#pragma unroll
  for (int i = 0; i < kVecSize<T>; ++i) elements[i] = T(vec.values[i]);
  uint4 bits;
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

// `from` and `to` on 16 bytes
template <typename T>
__device__ inline Vec<T> load(const T* from) {
  return from_bits<T>(*reinterpret_cast<const uint4*>(from));
}
template <typename T>
__device__ inline Vec<T> load_streaming(const T* from) {
  return from_bits<T>(load_streaming_16(from));
}
template <typename T>
__device__ inline void store(T* to, const Vec<T>& vec) {
  *reinterpret_cast<uint4*>(to) = to_bits(vec);
}

}  // namespace tinyserve::cuda
