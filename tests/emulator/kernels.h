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

// out[i] = sum over c of x[c, i]: chunks brought by bulk copies into a ring of mbarriers, added up by two warps.
constexpr int kRingChunk = 128;  // floats
void ring_sum(const float* x, float* out, int chunks, void* stream);

// out[m, n] = sum over k of w[n, k] * x[m, k], by wgmma on tiles of 64 n and `tile_m` m: w in registers, x through
// tensor copies that the two blocks of a cluster share.
enum class Mistake {
  kNone,
  kNoFence,        // no wgmma_fence
  kLateA,          // A changes between the fence and the product
  kReusedA,        // ... between the product and its wait
  kEarlyD,         // D is added to before the wait
  kEarlyRelease,   // a stage is given back before the products that read it are done
  kNoRelease,      // ... never
  kNoExpectation,  // bytes that nobody announces
  kEarlyRead,      // x is copied before grid_dependency_wait
  kNoInitFence,    // mbarriers are used without mbarrier_fence_init
};
struct ClusterGemmArgs {
  const void *w, *x;  // [n, k], [m, k]
  float* out;
  int m, n, k, tile_m;
  bool bf16;
  Mistake mistake;
};
void cluster_gemm(const ClusterGemmArgs& args, void* stream);

// to[i] = from[i] for the first `count` floats, 16 bytes at a time.
void copy(const float* from, float* to, int count, void* stream);

}  // namespace instructions
