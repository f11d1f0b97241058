// warp_functions.cu — each warp function once, lop3 and atomics in shared memory beside them.
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "kernels.h"

namespace instructions {
namespace {

using namespace tinyserve::cuda;

__global__ void warp_functions_kernel(const int* x, int* out) {
  constexpr unsigned kAll = 0xffffffff;
  auto* sums = reinterpret_cast<int*>(shared_memory());
  auto* float_sum = reinterpret_cast<float*>(sums + 1);
  const int lane = threadIdx.x, value = x[lane];
  if (lane == 0) sums[0] = 0, *float_sum = 0.f;
  __syncthreads();
  const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;  // two groups of lanes, each on its own
  const int results[kWarpFunctions] = {
      __shfl_sync(kAll, value, lane * 7),
      __shfl_sync(kAll, value, 5, 8),
      __shfl_xor_sync(kAll, value, 12),
      __shfl_down_sync(kAll, value, 3),
      __shfl_up_sync(kAll, value, 3, 16),
      int(__ballot_sync(kAll, value % 2)),
      __any_sync(half, value == x[3]),
      __all_sync(half, value != x[20]),
      int(__reduce_add_sync(half, unsigned(value))),
      int(__reduce_max_sync(kAll, unsigned(value))),
      int(__reduce_min_sync(kAll, unsigned(value))),
      int(lop3<0xea>(unsigned(value), 0x0f0f0f0fu, 0x30303030u)),
      (atomicAdd(&sums[0], value), atomicAdd(float_sum, float(value)), __syncthreads(), sums[0]),
      int(*float_sum),
  };
  for (int i = 0; i < kWarpFunctions; ++i) out[i * 32 + lane] = results[i];
}

}  // namespace

void warp_functions(const int* x, int* out, void* stream) {
  launch_kernel("warp_functions", warp_functions_kernel, dim3(1), dim3(32), 2 * sizeof(int), stream, x, out);
}

}  // namespace instructions
