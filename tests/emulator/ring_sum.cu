// ring_sum.cu — bulk copies, mbarriers with arrivals and bytes, named barriers.
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "kernels.h"

namespace instructions {
namespace {

using namespace tinyserve::cuda;

constexpr int kStages = 3;
constexpr int kConsumers = 64, kThreads = 96;  // a warp that copies comes last

struct Ring {
  float stages[kStages][kRingChunk];
  float sums[kRingChunk];
  uint64_t full[kStages], empty[kStages];
};

__global__ void ring_sum_kernel(const float* x, float* out, int chunks) {
  auto& ring = *reinterpret_cast<Ring*>(shared_memory());
  const int i = threadIdx.x;
  if (i == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&ring.full[s], 1);
      mbarrier_init(&ring.empty[s], kConsumers);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  if (i >= kConsumers) {
    if (i == kConsumers)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int stage = chunk % kStages, round = chunk / kStages;
        mbarrier_wait(&ring.empty[stage], round % 2 ^ 1);
        mbarrier_expect_bytes(&ring.full[stage], sizeof ring.stages[stage]);
        constexpr int kHalf = kRingChunk / 2;
        for (int half = 0; half < 2; ++half)
          bulk_copy(&ring.stages[stage][half * kHalf], x + chunk * kRingChunk + half * kHalf, kHalf * sizeof(float),
                    &ring.full[stage]);
      }
    return;
  }
  float sums[2] = {};  // of i and of the element that mirrors it
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % kStages;
    mbarrier_wait(&ring.full[stage], chunk / kStages % 2);
    sums[0] += ring.stages[stage][i];
    sums[1] += ring.stages[stage][kRingChunk - 1 - i];
    mbarrier_arrive(&ring.empty[stage]);
  }
  ring.sums[i] = sums[0];
  ring.sums[kRingChunk - 1 - i] = sums[1];
  if (i < 32) {  // the first warp stores what both have summed
    named_barrier_sync(1, kConsumers);
    for (int j = i; j < kRingChunk; j += 32) out[j] = ring.sums[j];
  } else {
    named_barrier_arrive(1, kConsumers);
  }
}

__global__ void copy_kernel(const float4* from, float4* to, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const uint4 bits = load_evict_first_16(from + i);
    memcpy(to + i, &bits, sizeof bits);
  }
}

}  // namespace

void ring_sum(const float* x, float* out, int chunks, void* stream) {
  launch_kernel("ring_sum", ring_sum_kernel, dim3(1), dim3(kThreads), sizeof(Ring), stream, x, out, chunks);
}

void copy(const float* from, float* to, int count, void* stream) {
  launch_kernel("copy", copy_kernel, dim3(1), dim3(64), 0, stream, reinterpret_cast<const float4*>(from),
                reinterpret_cast<float4*>(to), count / 4);
}

}  // namespace instructions
