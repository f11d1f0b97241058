// activations.h — what the matrix kernels share at their ends: inputs to fp32 once, results with bias back to their
// dtype.
#pragma once

#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

// x [size] as fp32: x itself, or `scratch` filled with it.
inline const float* to_floats(const void* x, Dtype dtype, float* scratch, int64_t size) {
  if (dtype == Dtype::kFloat) return static_cast<const float*>(x);
  dispatch(dtype, [&]<typename T>(T*) {
    parallel_for(size, 32768, [&](int64_t begin, int64_t end) {
      const T* from = static_cast<const T*>(x);
      for (int64_t i = begin; i < end; i += kWidth) {
        store_part(scratch + i, load_part(from + i, end - i), end - i);
      }
    });
  });
  return scratch;
}

// y[offset + i] = sums[i] + bias[n + i] for i < count, rounded once.
inline void store_sums(void* y, const void* bias, Dtype dtype, int64_t offset, int64_t n, const float* sums,
                       int64_t count) {
  dispatch(dtype, [&]<typename T>(T*) {
    for (int64_t i = 0; i < count; i += kWidth) {
      Vec value = load_part(sums + i, count - i);
      if (bias != nullptr) value += load_part(static_cast<const T*>(bias) + n + i, count - i);
      store_part(static_cast<T*>(y) + offset + i, value, count - i);
    }
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
