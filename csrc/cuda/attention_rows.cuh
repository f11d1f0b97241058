// attention_rows.cuh — what a warp of paged_attention does with its rows: products with keys, softmax as it goes along,
// weighted values. Everything stays in registers between the queries and the result. Scores: attention_scores.cuh.
#pragma once

#include "attention_operand.cuh"
#include "attention_scores.cuh"

namespace tinyserve::cuda {

template <typename Shape>
struct WarpRows {
  using T = typename Shape::T;
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kOuts = Shape::kDim / 8;  // operands of 8 elements of the result

  float out[kRowTiles][kOuts][4];
  float most[kRowTiles][2];  // the largest score, of the rows r and r + 8
  float sum[kRowTiles][2];   // of 2^(score - most); of this lane's keys until finish()

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
    Scores scores = {};
    multiply_keys(scores, queries, keys, first);
    finish_scores<Shape>(scores, job, walk, scales + first, walk.tile * Shape::kKeys + first, sees_all);
    soften(scores);
    if constexpr (Shape::kHasScales) scale_columns<Shape>(scores, scales + Shape::kKeys + first);
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
            visit(m, half, n * 8 + warp_lane() % 4 * 4, values);
          }
        } else {
#pragma unroll
          for (int n = 0; n < kOuts; ++n) {
            const float values[2] = {out[m][n][2 * half], out[m][n][2 * half + 1]};
            visit(m, half, n * 8 + warp_lane() % 4 * 2, values);
          }
        }
      }
    }
  }

 private:
  using Scores = WarpScores<Shape>;

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
          ldmatrix_x4(a[s][m], query_at<Shape>(queries, first_warp_row<Shape>() + m * 16 + warp_lane() % 16,
                                               2 * step + warp_lane() / 16));
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
