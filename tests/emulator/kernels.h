// kernels.h — the emulator's own small kernels: between them they use every instruction of csrc/cuda/ptx.cuh.
#pragma once

#include <cstdint>

namespace instructions {

// out[m, n] = sum over k of a[m, k] * b[n, k]; `transposed`: of a[k, m] * b[k, n]. Rows of a and b on 16 bytes.
struct GemmArgs {
  const void *a, *b;
  float* out;
  int m, n, k;
  bool bf16, transposed;
};
void gemm(const GemmArgs& args, void* stream);

// out[tile, i] = sum over p of x[tile, p, i], each part by a block of its own; the last one to arrive adds them up.
struct SplitSumArgs {
  const float* x;      // [tiles, parts, kSplitSumSize]
  float* workspace;    // as x
  unsigned* counters;  // [tiles] zero, and zero again after
  float* out;          // [tiles, kSplitSumSize]
  int tiles, parts;
};
constexpr int kSplitSumSize = 64;
void split_sum(const SplitSumArgs& args, void* stream);

// out[i, lane]: what each warp function of CUDA C++ makes of x[lane]; see warp_functions.cu.
constexpr int kWarpFunctions = 14;
void warp_functions(const int* x, int* out, void* stream);

}  // namespace instructions
