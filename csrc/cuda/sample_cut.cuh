// sample_cut.cuh — where top_k and top_p cut a row: exact thresholds by radix selection, without a sort.
//
// The bits of the order (sample_row.cuh) are fixed from the highest down, a digit at a time: a histogram over the
// elements that agree so far, of their number (top_k) or of their mass (top_p), says in which digit the cut is. Sums
// are integers, so the order in which threads add does not matter.
#pragma once

#include "sample_row.cuh"

namespace tinyserve::cuda {

// What stays of a row: everything above an order, and of what has just that the first `ties` in the vocabulary's order.
struct SampleCut {
  uint32_t order = 0;  // below every logit's: nothing is cut
  uint32_t ties = 0;
};

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;  // two for each thread
static_assert(kBins == 2 * kSampleThreads);

struct CutScratch {
  uint32_t low[kBins], high[kBins];  // halves of 64 bits: shared memory adds 32 at once
  uint64_t warps[kSampleWarps], below[kSampleWarps];
  uint64_t above;  // what is found in a histogram: the sum above the digit of the cut, and that digit
  uint32_t digit;
};

__device__ inline void add_to_bin(CutScratch& scratch, int bin, uint64_t amount) {
  const uint32_t low = uint32_t(amount), sum = atomicAdd(&scratch.low[bin], low) + low;
  if (const uint32_t high = uint32_t(amount >> 32) + (sum < low ? 1 : 0); high != 0)
    atomicAdd(&scratch.high[bin], high);
}

// Sums of the bins above this thread's two, which count down from the last bin, of all, and of what lies below the
// floor.
struct BinSums {
  uint64_t first, second;  // of the two bins
  uint64_t above, total, below;
};

__device__ inline BinSums sum_bins(CutScratch& scratch, uint64_t below) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto bin = [&](int i) { return uint64_t(scratch.high[i]) << 32 | scratch.low[i]; };
  BinSums sums;
  sums.first = bin(kBins - 1 - 2 * threadIdx.x);
  sums.second = bin(kBins - 2 - 2 * threadIdx.x);
  const uint64_t mine = sums.first + sums.second, in_warp = warp_prefix_sum(mine);
  below = warp_prefix_sum(below);
  if (lane == kWarpSize - 1) scratch.warps[warp] = in_warp, scratch.below[warp] = below;
  __syncthreads();
  const uint64_t warps = warp_prefix_sum(scratch.warps[lane]);
  const uint64_t before = __shfl_sync(0xffffffff, warps, warp > 0 ? warp - 1 : 0);
  sums.above = in_warp - mine + (warp > 0 ? before : 0);
  sums.total = __shfl_sync(0xffffffff, warps, kWarpSize - 1);
  sums.below = __shfl_sync(0xffffffff, warp_prefix_sum(scratch.below[lane]), kWarpSize - 1);
  return sums;
}

// Cuts behind the element with which a sum over the most likely ones reaches its target.
//   before: an earlier cut; what it has left counts.
//   floor: an order; few elements have that or a higher one.
//   amount(logit): what an element adds to the sum.
//   target_of(total): the sum to reach, 1..total.
// All threads of the block; a barrier must separate it from other uses of the scratch memory.
template <typename T, typename Amount, typename Target>
__device__ inline SampleCut cut_row(const SampleRow<T>& row, SampleCut before, uint32_t floor, const Amount& amount,
                                    const Target& target_of, CutScratch& scratch) {
  // 16-bit logits differ in the upper bits only; below, the order's are those of the sign.
  constexpr int kDigits = sizeof(T) == 2 ? 2 : 3;
  uint32_t prefix = 0;
  uint64_t above = 0, target = 0;
#pragma unroll
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = max(0, 32 - (digit + 1) * kDigitBits);
    const int bits = digit == 2 ? 32 - 2 * kDigitBits : kDigitBits;
    const auto add = [&](uint32_t order, uint64_t sum) {
      if (digit > 0 && order >> (shift + bits) != prefix) return;
      if (sum != 0) add_to_bin(scratch, order >> shift & ((1u << bits) - 1), sum);
    };
    BinSums sums;
    while (true) {
      uint64_t below = 0;
      for (int bin = threadIdx.x; bin < kBins; bin += kSampleThreads) scratch.low[bin] = scratch.high[bin] = 0;
      __syncthreads();
      const auto take = [&](uint32_t order, uint64_t sum) {
        if (order >= floor)
          add(order, sum);
        else if (digit == 0)
          below += sum;
      };
      row.each(0, row.size, threadIdx.x, kSampleThreads, [&](int, float logit) {
        if (const uint32_t order = order_of(logit); order > before.order) take(order, amount(logit));
      });
      if (threadIdx.x == 0 && before.ties > 0) take(before.order, before.ties * amount(logit_of(before.order)));
      __syncthreads();
      sums = sum_bins(scratch, below);
      if (digit > 0) break;
      target = target_of(sums.total + sums.below);
      if (target <= sums.total) break;
      floor = 0;  // the cut is below: once more, and all of it
    }
    const uint64_t first = above + sums.above, second = first + sums.first, end = second + sums.second;
    if (first < target && target <= end) {  // in one thread alone
      scratch.digit = kBins - 1 - 2 * threadIdx.x - (target <= second ? 0 : 1);
      scratch.above = target <= second ? first : second;
    }
    __syncthreads();
    prefix = prefix << bits | scratch.digit;
    above = scratch.above;
  }
  SampleCut cut;
  constexpr int kRest = kDigits == 2 ? 32 - 2 * kDigitBits : 0;  // bits that no digit has fixed
  cut.order = prefix;
  if constexpr (kRest > 0) cut.order = prefix << kRest | (prefix >> (31 - kRest) != 0 ? 0 : (1u << kRest) - 1);
  const uint64_t each = amount(logit_of(cut.order));
  cut.ties = uint32_t((target - above + each - 1) / each);
  return cut;
}

}  // namespace tinyserve::cuda
