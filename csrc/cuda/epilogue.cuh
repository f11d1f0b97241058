// epilogue.cuh — what becomes of a product's fp32 sums: bias, SiLU(gate) * up, residual, one rounding, 16-byte stores.
//
// It is given 16 consecutive columns of one row at a time, wherever they were summed. With silu_mul the weight's rows
// alternate, 8 of the gate and 8 of the up projection, so that the 16 columns become 8 results.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace tinyserve::cuda {

template <typename T>
struct Epilogue {
  const T* bias;      // [N] or null
  const T* residual;  // of y's shape, or null
  T* y;               // [M, N]; with silu_mul [M, N/2]
  int n;              // columns of y
  bool silu_mul;
  bool on_16_bytes;  // n is a multiple of 8 and every pointer on 16 bytes

  Epilogue(const void* bias, const void* residual, void* y, int64_t rows, bool silu_mul)
      : bias(static_cast<const T*>(bias)),
        residual(static_cast<const T*>(residual)),
        y(static_cast<T*>(y)),
        n(int(silu_mul ? rows / 2 : rows)),
        silu_mul(silu_mul) {
    const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
    on_16_bytes = n % 8 == 0 && aligned(bias) && aligned(residual) && aligned(y);
  }

  // sums: of row m and the weight's rows `row` .. row + 15, row a multiple of 16; rows past the last are ignored.
  __device__ void store(float (&sums)[16], int64_t m, int row) const {
    const int rows = silu_mul ? 2 * n : n;
    if (bias != nullptr) {
      add(bias, row, rows, reinterpret_cast<float (&)[8]>(sums[0]));
      add(bias, row + 8, rows, reinterpret_cast<float (&)[8]>(sums[8]));
    }
    if (silu_mul) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] = sums[i] / (1.f + expf(-sums[i])) * sums[8 + i];
      store_8(reinterpret_cast<float (&)[8]>(sums[0]), m, row / 2);
    } else {
      store_8(reinterpret_cast<float (&)[8]>(sums[0]), m, row);
      store_8(reinterpret_cast<float (&)[8]>(sums[8]), m, row + 8);
    }
  }

 private:
  // values += from[at .. at + 7], as far as there are `size` of them
  __device__ void add(const T* from, int64_t at, int64_t size, float (&values)[8]) const {
    if (on_16_bytes && at + 8 <= size) {
      const uint4 bits = *reinterpret_cast<const uint4*>(from + at);
      T more[8];
      memcpy(more, &bits, sizeof bits);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += float(more[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (at + i < size) values[i] += float(from[at + i]);
      }
    }
  }

  __device__ void store_8(float (&values)[8], int64_t m, int column) const {
    if (column >= n) return;
    if (residual != nullptr) add(residual + m * n, column, n, values);
    T* to = y + m * n + column;
    if (on_16_bytes) {
      T rounded[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) rounded[i] = T(values[i]);
      uint4 bits;
      memcpy(&bits, rounded, sizeof bits);
      *reinterpret_cast<uint4*>(to) = bits;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i < n) to[i] = T(values[i]);
      }
    }
  }
};

}  // namespace tinyserve::cuda
