// reduce.cuh — sums over a warp and over a block, the same in every thread and in a fixed order.
#pragma once

#include <cuda_runtime.h>

namespace tinyserve::cuda {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;  // of a block

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  return value;
}

// All threads of the block take part; blockDim.x is a multiple of a warp. `sums`: [kMaxWarps] in shared memory, which a
// barrier must separate from any other use.
__device__ inline float block_sum(float value, float* sums) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : 0.f);
}

}  // namespace tinyserve::cuda
