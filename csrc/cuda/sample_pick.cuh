// sample_pick.cuh — which element of what is kept of a row a number in [0, 1) falls on.
//
// Elements lie side by side in the vocabulary's order, each as long as its weight. Thirty-two warps sum a part each,
// the part that holds the number is parted again, until a warp has one element for each lane. Sums are integers: exact.
#pragma once

#include "sample_cut.cuh"

namespace tinyserve::cuda {

struct PickScratch {
  uint64_t sums[kSampleWarps];
  uint32_t ties[kSampleWarps];
};

// Of 32 neighbours, one for each lane, the one that `target` lies on, and what it is there. The last lanes' may be
// empty.
struct Place {
  int lane;
  uint64_t target;
  uint32_t ties;  // that may still be kept in it and behind it
};

// This lane's `sum` without ties, and how many `ties` it has, of `tie` each, of which the first `kept` count. In the
// first round `target` is a share of the whole, 64 bits behind the point; then a sum.
__device__ inline Place find_place(uint64_t sum, uint32_t ties, uint64_t tie, uint32_t kept, uint64_t target,
                                   bool is_share) {
  const uint32_t ties_before = warp_prefix_sum(ties) - ties;
  const uint32_t left = kept > ties_before ? kept - ties_before : 0;
  const uint64_t mine = sum + (ties < left ? ties : left) * tie, end = warp_prefix_sum(mine);
  if (is_share) target = __umul64hi(target, __shfl_sync(0xffffffff, end, kWarpSize - 1));
  const int lane = __ffs(__ballot_sync(0xffffffff, end > target)) - 1;
  return {lane, target - __shfl_sync(0xffffffff, end - mine, lane), __shfl_sync(0xffffffff, left, lane)};
}

// All threads of the block, to which it returns the same index; a barrier must separate it from other uses of the
// scratch memory. `min_p`: the least weight that is kept.
template <typename T>
__device__ inline int pick(const SampleRow<T>& row, const SampleWeights& weight, SampleCut cut, float min_p,
                           double uniform, PickScratch& scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const float tie = weight(logit_of(cut.order));
  const uint64_t tie_sum = cut.ties > 0 && tie >= min_p ? fixed_point(tie) : 0;
  const auto add = [&](float logit, uint64_t& sum, uint32_t& ties) {
    const uint32_t order = order_of(logit);
    ties += order == cut.order;
    if (const float mine = weight(logit); order > cut.order && mine >= min_p) sum += fixed_point(mine);
  };

  Place place{0, uint64_t(uniform * 18446744073709551616.0), cut.ties};
  bool is_share = true;
  int begin = 0, end = row.size;
  constexpr int kStep = SampleRow<T>::kStep;
  while (end - begin > kWarpSize) {
    const int part = (end - begin + kSampleWarps * kStep - 1) / (kSampleWarps * kStep) * kStep;
    const int from = min(begin + warp * part, end), to = min(from + part, end);
    uint64_t sum = 0;
    uint32_t ties = 0;
    row.each(from, to, lane, kWarpSize, [&](int, float logit) { add(logit, sum, ties); });
    sum = warp_prefix_sum(sum), ties = warp_prefix_sum(ties);
    if (lane == kWarpSize - 1) scratch.sums[warp] = sum, scratch.ties[warp] = ties;
    __syncthreads();
    place = find_place(scratch.sums[lane], scratch.ties[lane], tie_sum, place.ties, place.target, is_share);
    __syncthreads();  // everybody has read the sums
    begin = min(begin + place.lane * part, end), end = min(begin + part, end);
    is_share = false;
  }
  uint64_t sum = 0;
  uint32_t ties = 0;
  if (begin + lane < end) add(float(row.logits[begin + lane]), sum, ties);
  return begin + find_place(sum, ties, tie_sum, place.ties, place.target, is_share).lane;
}

}  // namespace tinyserve::cuda
