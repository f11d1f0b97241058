// attention_rows.cuh — what a warp of paged_attention does with its rows: scores, softmax as it goes along, weighted
// values. Everything stays in registers between the queries and the result.
//
// Scores and maxima are in powers of two: 2^x is one instruction, e^x two. Of every 16 rows a lane holds parts of rows
// r = lane / 4 and r + 8.
#pragma once

#include "attention_operand.cuh"
#include "attention_ring.cuh"

namespace tinyserve::cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kNothing = -INFINITY;  // the score of a key that a row does not see
constexpr int kAllKeys = 1 << 30;      // a window that is none

template <typename Shape>
struct WarpRows {
  using T = typename Shape::T;
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kOuts = Shape::kDim / 8;  // operands of 8 elements of the result

  float out[kRowTiles][kOuts][4];
  float most[kRowTiles][2];  // the largest score, of the rows r and r + 8
  float sum[kRowTiles][2];   // of 2^(score - most); of this lane's keys until finish()

  __device__ static int lane() { return threadIdx.x % kWarpSize; }
  __device__ static int first_row() { return threadIdx.x / kWarpSize / Shape::kKeyWarps * Shape::kWarpRows; }
  __device__ static int row(int row_tile, int half) { return first_row() + row_tile * 16 + half * 8 + lane() / 4; }

  __device__ void start() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        most[m][half] = kNothing;
        sum[m][half] = 0.f;
      }
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n][i] = 0.f;
      }
    }
  }

  // Takes Shape::kStep keys from `first` of the walk's tile on.
  __device__ void attend(const AttentionJob& job, const AttentionWalk<Shape>& walk, char* queries, char* keys,
                         char* values, const float* scales, int first, bool sees_all) {
    float scores[kRowTiles][Shape::kStep / 8][4] = {};
    multiply_keys(scores, queries, keys, first);
    finish_scores(scores, job, walk, scales + first, walk.tile * Shape::kKeys + first, sees_all);
    soften(scores);
    if constexpr (Shape::kHasScales) scale_columns(scores, scales + Shape::kKeys + first);
    add_values(scores, values, first);
  }

  // Sums over the lanes of a row.
  __device__ void finish() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int step = 1; step < 4; step *= 2) sum[m][half] += __shfl_xor_sync(0xffffffff, sum[m][half], step);
      }
    }
  }

  // Calls visit(row tile, half, first element, values) for the neighbours in a head that this lane holds.
  template <typename Visit>
  __device__ void each_piece(const Visit& visit) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (Shape::kHasScales) {
#pragma unroll
          for (int n = 0; n < kOuts; n += 2) {
            const float (&even)[4] = out[m][n], (&odd)[4] = out[m][n + 1];
            const float values[4] = {even[2 * half], odd[2 * half], even[2 * half + 1], odd[2 * half + 1]};
            visit(m, half, n * 8 + lane() % 4 * 4, values);
          }
        } else {
#pragma unroll
          for (int n = 0; n < kOuts; ++n) {
            const float values[2] = {out[m][n][2 * half], out[m][n][2 * half + 1]};
            visit(m, half, n * 8 + lane() % 4 * 2, values);
          }
        }
      }
    }
  }

 private:
  using Scores = float[kRowTiles][Shape::kStep / 8][4];

  __device__ static void multiply_keys(Scores& scores, char* queries, char* keys, int first) {
    using Operands = KeyOperands<Shape>;
    constexpr int kAtOnce = Shape::kDim > 128 ? 2 : Shape::kChunks;  // more, and the results of wide heads are spilled
#pragma unroll kAtOnce
    for (int chunk = 0; chunk < Shape::kChunks; chunk += 2) {
      uint32_t a[Operands::kSteps][kRowTiles][4];
#pragma unroll
      for (int s = 0; s < Operands::kSteps; ++s) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const int step = chunk / 2 * Operands::kSteps + s;
          ldmatrix_x4(a[s][m], query_at<Shape>(queries, first_row() + m * 16 + lane() % 16, 2 * step + lane() / 16));
        }
      }
#pragma unroll
      for (int n = 0; n < Shape::kStep / 16; ++n) {
        Operands operands;
        operands.load_keys(keys, first + 16 * n, chunk);
#pragma unroll
        for (int s = 0; s < Operands::kSteps; ++s) {
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            mma_m16n8k16<T>(scores[m][2 * n], a[s][m], operands.b[s][0]);
            mma_m16n8k16<T>(scores[m][2 * n + 1], a[s][m], operands.b[s][1]);
          }
        }
      }
    }
  }

  // Calls change(score, key) for every score of this lane's row; keys count from 0.
  template <typename Change>
  __device__ static void each_score(Scores& scores, int m, int half, const Change& change) {
#pragma unroll
    for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) change(scores[m][n][2 * half + i], n * 8 + lane() % 4 * 2 + i);
    }
  }
  template <typename Change>
  __device__ static void each_row(const Change& change) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) change(m, half);
    }
  }

  __device__ static void scale_columns(Scores& scores, const float* scales) {
#pragma unroll
    for (int n = 0; n < Shape::kStep / 8; ++n) {
      const float2 scale = *reinterpret_cast<const float2*>(scales + n * 8 + lane() % 4 * 2);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][n][i] *= i % 2 == 0 ? scale.x : scale.y;
      }
    }
  }

  // Products become scores; `key` is the position of the first one's key.
  __device__ static void finish_scores(Scores& scores, const AttentionJob& job, const AttentionWalk<Shape>& walk,
                                       const float* key_scales, int key, bool sees_all) {
    if constexpr (Shape::kHasScales) scale_columns(scores, key_scales);
    if (job.a.soft_cap > 0.f) {
      const float inner = job.a.scale / job.a.soft_cap * 2.f * kLog2E, outer = job.a.soft_cap * kLog2E;
      each_row([&](int m, int half) {
        each_score(scores, m, half, [&](float& score, int) {  // tanh(x) = 1 - 2 / (1 + e^2x)
          score = outer - 2.f * outer / (1.f + exp2_approx(score * inner));
        });
      });
    } else {
      const float factor = job.a.scale * kLog2E;
      each_row([&](int m, int half) { each_score(scores, m, half, [&](float& score, int) { score *= factor; }); });
    }
    if (job.a.alibi_slopes != nullptr) {
      each_row([&](int m, int half) {
        const int index = walk.first_row() + row(m, half), query = index / job.group;
        const int head = walk.kv_head * job.group + index - query * job.group;
        const float slope = kLog2E * job.a.alibi_slopes[head];
        const int distance = key - (walk.rows.cached + query);
        each_score(scores, m, half, [&](float& score, int j) { score += slope * float(distance + j); });
      });
    }
    if (sees_all) return;
    const int window = job.window == 0 ? kAllKeys : job.window;
    each_row([&](int m, int half) {
      const int query = (walk.first_row() + row(m, half)) / job.group;
      const int limit = walk.rows.cached + query + 1 - key;  // of the keys that the row sees
      each_score(scores, m, half, [&](float& score, int j) {
        if (j >= limit || j < limit - window) score = kNothing;
      });
    });
  }

  // Scores become weights 2^(score - most); what was summed with a smaller maximum is scaled down.
  __device__ void soften(Scores& scores) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = most[m][half];
#pragma unroll
        for (int n = 0; n < Shape::kStep / 8; ++n)
          largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
#pragma unroll
        for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
        const float base = largest == kNothing ? 0.f : largest;  // of a row that has seen nothing, no NaN
        const float keep = exp2_approx(most[m][half] - base);
        most[m][half] = largest;
        sum[m][half] *= keep;
#pragma unroll
        for (int n = 0; n < kOuts; ++n) {
          out[m][n][2 * half] *= keep;
          out[m][n][2 * half + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i)
            sum[m][half] += scores[m][n][i] = exp2_approx(scores[m][n][i] - base);
        }
      }
    }
  }

  __device__ void add_values(const Scores& weights, char* values, int first) {
    using Operands = KeyOperands<Shape>;
#pragma unroll
    for (int k = 0; k < Shape::kStep / 16; ++k) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // (r, keys 0..7), (r + 8, keys 0..7), (r, keys 8..15), (r + 8, keys 8..15)
          const float (&pair)[4] = weights[m][2 * k + i / 2];
          a[m][i] = pack_pair<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int chunk = 0; chunk < Shape::kChunks; chunk += 2) {
        Operands operands;
        operands.load_values(values, first + 16 * k, chunk);
#pragma unroll
        for (int s = 0; s < Operands::kSteps; ++s) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m)
              mma_m16n8k16<T>(out[m][(chunk / 2 * Operands::kSteps + s) * 2 + n], a[m], operands.b[s][n]);
          }
        }
      }
    }
  }
};

}  // namespace tinyserve::cuda
