// attention_scores.cuh — what a warp makes of the products of its queries and some keys: scores, scaled, capped, biased
// by distance, and masked where a row does not see a key.
//
// Scores are in powers of two: 2^x is one instruction, e^x two. Of every 16 rows a lane holds parts of rows r = lane /
// 4 and r + 8, of every 8 keys two.
#pragma once

#include "attention_work.cuh"
#include "ptx.cuh"

namespace tinyserve::cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kNothing = -INFINITY;  // the score of a key that a row does not see
constexpr int kAllKeys = 1 << 30;      // a window that is none

// As an accumulator of the tensor cores: [16 rows][8 keys][(r, two keys), (r + 8, the same two)].
template <typename Shape>
using WarpScores = float[Shape::kRowTiles][Shape::kStep / 8][4];

__device__ inline int warp_lane() { return threadIdx.x % kWarpSize; }

// The first of a warp's rows in the row tile; the one of this lane in a half of 16 rows.
template <typename Shape>
__device__ inline int first_warp_row() {
  return threadIdx.x / kWarpSize / Shape::kKeyWarps * Shape::kWarpRows;
}
template <typename Shape>
__device__ inline int warp_row(int row_tile, int half) {
  return first_warp_row<Shape>() + row_tile * 16 + half * 8 + warp_lane() / 4;
}

// Calls change(score, key) for every score of this lane's row; keys count from 0.
template <typename Shape, typename Change>
__device__ inline void each_score(WarpScores<Shape>& scores, int m, int half, const Change& change) {
#pragma unroll
  for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) change(scores[m][n][2 * half + i], n * 8 + warp_lane() % 4 * 2 + i);
  }
}
template <typename Shape, typename Change>
__device__ inline void each_row(const Change& change) {
#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) change(m, half);
  }
}

template <typename Shape>
__device__ inline void scale_columns(WarpScores<Shape>& scores, const float* scales) {
#pragma unroll
  for (int n = 0; n < Shape::kStep / 8; ++n) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + n * 8 + warp_lane() % 4 * 2);
#pragma unroll
    for (int m = 0; m < Shape::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] *= i % 2 == 0 ? scale.x : scale.y;
    }
  }
}

// Products become scores; `key` is the position of the first one's key.
template <typename Shape>
__device__ inline void finish_scores(WarpScores<Shape>& scores, const AttentionJob& job,
                                     const AttentionWalk<Shape>& walk, const float* key_scales, int key,
                                     bool sees_all) {
  if constexpr (Shape::kHasScales) scale_columns<Shape>(scores, key_scales);
  if (job.a.soft_cap > 0.f) {
    const float inner = job.a.scale / job.a.soft_cap * 2.f * kLog2E, outer = job.a.soft_cap * kLog2E;
    each_row<Shape>([&](int m, int half) {
      each_score<Shape>(scores, m, half, [&](float& score, int) {  // tanh(x) = 1 - 2 / (1 + e^2x)
        score = outer - 2.f * outer / (1.f + exp2_approx(score * inner));
      });
    });
  } else {
    const float factor = job.a.scale * kLog2E;
    each_row<Shape>(
        [&](int m, int half) { each_score<Shape>(scores, m, half, [&](float& score, int) { score *= factor; }); });
  }
  if (job.a.alibi_slopes != nullptr) {
    each_row<Shape>([&](int m, int half) {
      const int index = walk.first_row() + warp_row<Shape>(m, half), query = index / job.group;
      const int head = walk.kv_head * job.group + index - query * job.group;
      const float slope = kLog2E * job.a.alibi_slopes[head];
      const int distance = key - (walk.rows.cached + query);
      each_score<Shape>(scores, m, half, [&](float& score, int j) { score += slope * float(distance + j); });
    });
  }
  if (sees_all) return;
  const int window = job.window == 0 ? kAllKeys : job.window;
  each_row<Shape>([&](int m, int half) {
    const int query = (walk.first_row() + warp_row<Shape>(m, half)) / job.group;
    const int limit = walk.rows.cached + query + 1 - key;  // of the keys that the row sees
    each_score<Shape>(scores, m, half, [&](float& score, int j) {
      if (j >= limit || j < limit - window) score = kNothing;
    });
  });
}

}  // namespace tinyserve::cuda
