// sample_row.cuh — one row of logits as sampling sees it: integers that order as the logits do, and weights in fixed
// point, whose sums are the same in any order. A block works on a row; it knows nothing of what is kept.
#pragma once

#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

#include <cmath>

namespace tinyserve::cuda {

constexpr int kSampleThreads = 1024;
constexpr int kSampleWarps = kSampleThreads / kWarpSize;

// A weight is exp((logit - largest) / temperature), 1 for the largest. As an integer it has so many fractional bits:
// the sum over a row of kMaxVocab is below 2^63. What has less than 2^-44 of the largest probability is never drawn.
constexpr int kWeightBits = 44;

constexpr uint32_t kOrderOfInfinity = 0xff800000, kOrderOfMinusInfinity = 0x007fffff;

// A larger logit has a larger number; -0 is 0, and NaN is the largest of all.
__device__ inline uint32_t order_of(float logit) {
  if (logit != logit) return 0xffffffff;
  const uint32_t bits = __float_as_uint(logit + 0.f);  // -0 + 0 is 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000;
}
__device__ inline float logit_of(uint32_t order) {
  return __uint_as_float((order >> 31) != 0 ? order & 0x7fffffff : ~order);
}

template <typename T>
struct SampleRow {
  const T* logits;
  int size;
  bool is_whole;  // on 16 bytes, and of whole vectors of 16 bytes

  // Parts of a row begin at multiples of this, so that a vector never lies in two.
  static constexpr int kStep = kVecSize<T>;

  // f(index, logit) for all of begin..end - 1, shared out among `threads` threads, of which this is `thread`; each
  // thread's indices ascend.
  template <typename F>
  __device__ void each(int begin, int end, int thread, int threads, const F& f) const {
    if (is_whole) {
      for (int i = begin + thread * kStep; i < end; i += threads * kStep) {
        const Vec<T> vec = load(logits + i);
#pragma unroll
        for (int j = 0; j < kStep; ++j) f(i + j, vec.values[j]);
      }
      return;
    }
    constexpr int kBatch = 8;  // loads under way at once
    for (int i = begin + thread; i < end; i += threads * kBatch) {
      float values[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (const int at = i + j * threads; at < end) values[j] = float(logits[at]);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (const int at = i + j * threads; at < end) f(at, values[j]);
    }
  }
};

struct SampleWeights {
  float largest;  // logit
  float scale;    // log2(e) / temperature

  __device__ float operator()(float logit) const { return exp2_approx((logit - largest) * scale); }
};

__device__ inline uint64_t fixed_point(float weight) { return uint64_t(weight * float(1ull << kWeightBits)); }

// Of the lanes up to this one.
template <typename N>
__device__ inline N warp_prefix_sum(N value) {
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const N below = __shfl_up_sync(0xffffffff, value, step);
    if (int(threadIdx.x % kWarpSize) >= step) value += below;
  }
  return value;
}

struct Largest {
  uint32_t order;
  int index;       // the lowest of those that have it
  uint32_t floor;  // the least of the threads' largest orders: few elements lie above it, at least one for each thread
};

struct LargestScratch {
  uint64_t largest[kSampleWarps];
  uint32_t floors[kSampleWarps];
};

// Of the block's row, the same in every thread; a barrier must separate it from other uses of the scratch memory.
template <typename T>
__device__ inline Largest largest_of(const SampleRow<T>& row, LargestScratch& scratch) {
  uint32_t order = 0;
  int index = 0;
  row.each(0, row.size, threadIdx.x, kSampleThreads, [&](int i, float logit) {
    if (const uint32_t mine = order_of(logit); mine > order) order = mine, index = i;
  });
  const auto warp_max = [](auto value) {
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      const auto other = __shfl_xor_sync(0xffffffff, value, step);
      value = other > value ? other : value;
    }
    return value;
  };
  // Both in one number: among equal ones the lower index is the larger.
  const uint64_t largest = warp_max(uint64_t(order) << 32 | ~uint32_t(index));
  const uint32_t floor = ~warp_max(~order);
  if (threadIdx.x % kWarpSize == 0) {
    scratch.largest[threadIdx.x / kWarpSize] = largest;
    scratch.floors[threadIdx.x / kWarpSize] = floor;
  }
  __syncthreads();
  const uint64_t best = warp_max(scratch.largest[threadIdx.x % kWarpSize]);
  return {uint32_t(best >> 32), int(~uint32_t(best)), ~warp_max(~scratch.floors[threadIdx.x % kWarpSize])};
}

}  // namespace tinyserve::cuda
