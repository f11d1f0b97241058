// attention_merge.cuh — how a row tile's results meet: those of the warps that share its keys, then those of the CTAs
// whose shares cut it.
//
// Two results of a row, each with its maximum m and its sum of 2^(score - m), become one by scaling both to the larger
// maximum. The order is fixed by keys, never by who comes first: a call repeated gives the same bits.
#pragma once

#include "attention_rows.cuh"
#include "stream_k.cuh"

namespace tinyserve::cuda {

// Where a row of the walk's row tile lies in q and y, [T, H, D].
template <typename Shape>
__device__ inline int64_t row_offset(const AttentionJob& job, const AttentionWalk<Shape>& walk, int row) {
  const int index = walk.first_row() + row, query = index / job.group;
  const int64_t token = walk.rows.first_token + query;
  return (token * job.a.num_heads + walk.kv_head * job.group + index - query * job.group) * job.a.head_dim;
}

// The CTAs whose shares have units of the walk's row tile.
template <typename Shape>
__device__ inline Parts parts_of(const AttentionShare<Shape>& share, const AttentionWalk<Shape>& walk) {
  const int64_t first = share.unit(walk) - (walk.tile - walk.first_tile());
  Parts parts{};
  parts.first = int(first / share.size);
  parts.last = int((first + walk.end_tile() - walk.first_tile() - 1) / share.size);
  parts.first_in_second = first > int64_t(parts.first) * share.size;
  return parts;
}

// Several neighbours of a head, rounded once.
template <typename T, int Size>
__device__ inline void store_values(T* to, const float (&values)[Size], float factor) {
  uint32_t words[Size / 2];
#pragma unroll
  for (int i = 0; i < Size / 2; ++i) words[i] = pack_pair<T>(values[2 * i] * factor, values[2 * i + 1] * factor);
  if constexpr (Size == 2) {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  }
}

// Adds the rows of the warps that took the other keys of the tiles, in halves: afterwards the first warp has all of
// them. `memory`: a stage of the ring that no copy is on its way to.
template <typename Shape>
__device__ inline void merge_warps(WarpRows<Shape>& mine, char* memory, char* scratch) {
  static_assert(Shape::kRowTiles == 1 || Shape::kKeyWarps == 1);
  constexpr int kOuts = WarpRows<Shape>::kOuts;
  static_assert(Shape::kKeyWarps / 2 * kOuts * kWarpSize * 16 <= Shape::kStageBytes);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = Shape::kKeyWarps / 2; step > 0; step /= 2) {
    __syncthreads();  // nobody reads the stage any more
    float4* outs = reinterpret_cast<float4*>(memory) + warp % step * kOuts * kWarpSize + lane;
    float4* state = reinterpret_cast<float4*>(scratch) + warp % step * kWarpSize + lane;
    if (warp >= step && warp < 2 * step) {
#pragma unroll
      for (int n = 0; n < kOuts; ++n)
        outs[n * kWarpSize] = make_float4(mine.out[0][n][0], mine.out[0][n][1], mine.out[0][n][2], mine.out[0][n][3]);
      *state = make_float4(mine.most[0][0], mine.most[0][1], mine.sum[0][0], mine.sum[0][1]);
    }
    __syncthreads();
    if (warp >= step) continue;
    const float4 other = *state;
    float keep[2], add[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float most = half == 0 ? other.x : other.y, sum = half == 0 ? other.z : other.w;
      const float largest = fmaxf(mine.most[0][half], most), base = largest == kNothing ? 0.f : largest;
      keep[half] = exp2_approx(mine.most[0][half] - base);
      add[half] = exp2_approx(most - base);
      mine.most[0][half] = largest;
      mine.sum[0][half] = mine.sum[0][half] * keep[half] + sum * add[half];
    }
#pragma unroll
    for (int n = 0; n < kOuts; ++n) {
      const float4 from = outs[n * kWarpSize];
      mine.out[0][n][0] = mine.out[0][n][0] * keep[0] + from.x * add[0];
      mine.out[0][n][1] = mine.out[0][n][1] * keep[0] + from.y * add[0];
      mine.out[0][n][2] = mine.out[0][n][2] * keep[1] + from.z * add[1];
      mine.out[0][n][3] = mine.out[0][n][3] * keep[1] + from.w * add[1];
    }
  }
}

// A part of a cut row tile in the workspace: [kRows, kDim] weighted values, then each row's maximum and sum.
template <typename Shape>
struct Part {
  float* values;
  float2* states;

  __device__ Part(const AttentionJob& job, int64_t slot)
      : values(job.a.workspace + slot * Shape::kPartFloats),
        states(reinterpret_cast<float2*>(values + int64_t(Shape::kRows) * Shape::kDim)) {}
};

// Called by the last CTA to arrive at a cut row tile, with all of its threads.
template <typename Shape>
__device__ inline void merge_parts(const AttentionJob& job, const AttentionWalk<Shape>& walk, const Parts& parts) {
  using T = typename Shape::T;
  const int quads = int(job.a.head_dim / 4);
  for (int item = threadIdx.x; item < walk.num_rows(job) * quads; item += Shape::kThreads) {
    const int row = item / quads, d = item % quads * 4;
    float most = kNothing;
    for (int cta = parts.first; cta <= parts.last; ++cta)
      most = fmaxf(most, __ldcg(Part<Shape>(job, parts.slot(cta)).states + row).x);
    float sum = 0.f, values[4] = {};
    for (int cta = parts.first; cta <= parts.last; ++cta) {
      const Part<Shape> part(job, parts.slot(cta));
      const float2 state = __ldcg(part.states + row);
      const float4 more = __ldcg(reinterpret_cast<const float4*>(part.values + row * Shape::kDim + d));
      const float factor = exp2_approx(state.x - most);
      sum += state.y * factor;
      values[0] += more.x * factor;
      values[1] += more.y * factor;
      values[2] += more.z * factor;
      values[3] += more.w * factor;
    }
    store_values<T, 4>(static_cast<T*>(job.a.y) + row_offset(job, walk, row) + d, values, 1.f / sum);
  }
}

// Brings the rows of a row tile, in the registers of the warps that have them, to y; or, of a cut one, to the
// workspace.
template <typename Shape>
__device__ inline void write_rows(const AttentionJob& job, const AttentionWalk<Shape>& walk, const Parts& parts,
                                  const WarpRows<Shape>& rows, int* flag) {
  using T = typename Shape::T;
  const bool is_cut = parts.count() > 1;
  const int num_rows = walk.num_rows(job);
  const Part<Shape> part(job, parts.slot(blockIdx.x));
  if (threadIdx.x / kWarpSize % Shape::kKeyWarps == 0) {
    rows.each_piece([&](int m, int half, int d, const auto& values) {
      const int row = warp_row<Shape>(m, half);
      if (row >= num_rows || d >= job.a.head_dim) return;
      if (is_cut) {
        float* to = part.values + row * Shape::kDim + d;
        if constexpr (Shape::kHasScales) {
          *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
        } else {
          *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
        }
        if (d == 0) part.states[row] = make_float2(rows.most[m][half], rows.sum[m][half]);
      } else {
        store_values(static_cast<T*>(job.a.y) + row_offset(job, walk, row) + d, values, 1.f / rows.sum[m][half]);
      }
    });
  }
  if (is_cut && arrives_last(job.arrivals_row, parts, flag, [] { __syncthreads(); })) merge_parts(job, walk, parts);
}

}  // namespace tinyserve::cuda
