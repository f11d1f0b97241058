// split_sum.cu — blocks that hand their parts to whichever of them arrives last, as the stream-K kernels do.
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "kernels.h"

namespace instructions {
namespace {

using namespace tinyserve::cuda;

__global__ void split_sum_kernel(const float* x, float* workspace, unsigned* counters, float* out, int parts) {
  const int tile = blockIdx.x / parts, i = threadIdx.x;
  const int64_t at = int64_t(blockIdx.x) * kSplitSumSize + i;
  workspace[at] = x[at];
  threadfence();
  __syncthreads();
  bool last = false;
  if (i == 0) {
    last = atomicAdd(&counters[tile], 1u) == unsigned(parts - 1);
    threadfence();
    if (last) counters[tile] = 0;
  }
  if (__syncthreads_or(last) == 0) return;
  float sum = 0.f;
  for (int part = 0; part < parts; ++part) sum += workspace[(int64_t(tile) * parts + part) * kSplitSumSize + i];
  out[tile * kSplitSumSize + i] = sum;
}

}  // namespace

void split_sum(const SplitSumArgs& args, void* stream) {
  launch_kernel("split_sum", split_sum_kernel, dim3(args.tiles * args.parts), dim3(kSplitSumSize), 0, stream, args.x,
                args.workspace, args.counters, args.out, args.parts);
}

}  // namespace instructions
