// gemm_mma.cuh — w4a16_gemm by mma.sync, sm_80 and up: y^T = W x^T, the weight's rows as the operand of 16 rows.
//
// A persistent grid shares the tiles by stream_k.cuh. All threads of a CTA copy stages of codes, params and x into a
// ring in shared memory, without pause from one tile to the next; a warp multiplies its 64 n x warp_m x 64 k of each
// stage. Codes become (code - zero) * scale in registers, between two products; the operands of the next 16 k are read
// from shared memory before the products of these. Warps that share a tile's k add their sums when the tile ends, 8
// rows of x at a time, where they also turn from columns into rows for 16-byte stores.
#pragma once

#include "gemm_stage.cuh"
#include "launch.cuh"

namespace tinyserve::cuda {

template <typename T, int kIndex>
class MmaGemm {
  using Stage = GemmStage<T, kIndex>;
  using Source = GemmSource<T, kIndex>;
  static constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  static constexpr MmaShape kShape{kConfig};
  static constexpr int kTilesN = kPackBlock / kTile, kTilesM = Stage::kTilesM;  // of a warp
  static constexpr int kItems = kConfig.tile_n / kItem * kConfig.tile_m;        // of a tile

  const GemmProblem<T>& problem_;
  const int warp_n_, warp_m_, warp_k_;
  float sums_[kTilesN][kTilesM][4];

  __device__ explicit MmaGemm(const GemmProblem<T>& problem)
      : problem_(problem),
        warp_n_(warp() % kShape.warps_n),
        warp_m_(warp() / kShape.warps_n % kShape.warps_m),
        warp_k_(warp() / kShape.warps_n / kShape.warps_m) {}

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static Stage stage(int slot) { return {shared_memory() + slot * Stage::kBytes.all}; }
  __device__ static float* slab(int warp) {
    return reinterpret_cast<float*>(stage(kConfig.stages).base + warp * kSlabBytes);
  }

  __device__ static int* flag() { return reinterpret_cast<int*>(slab(kShape.warps)); }

  using Params = ScaledRows<T>[kTilesN];  // of this lane's rows among the warp's 64

  __device__ void read_params(Params& params, Stage from, int second) const {
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) params[i] = ScaledRows<T>(from.read_params(i, warp_n_, warp_k_, second));
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kTilesN; ++i)
#pragma unroll
      for (int j = 0; j < kTilesM; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums_[i][j][e] = 0.f;
  }

  __device__ void multiply(const uint32_t (&words)[kTilesN], const Params& params, const uint32_t (&x)[kTilesM][2]) {
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) {
      uint32_t weight[4];
      dequantize_scaled<T>(weight, words[i], params[i]);
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) mma_m16n8k16<T>(sums_[i][j], weight, x[j]);
    }
  }

  // Meets the warps that share sums, which may be this warp alone.
  __device__ static void meet() {
    if constexpr (kShape.warps_k == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Calls body(item, row m of the tile, row n of the tile, sums) for this thread's items of the CTA's sums.
  template <typename Body>
  __device__ void each_item(const Body& body) const {
    constexpr int kLanes = 32 / kShape.warps_k;  // of each of the warps that share sums
    float* mine = slab(warp());
    const int n = lane() / 4, m = lane() % 4 * 2;
#pragma unroll 1
    for (int rows = 0; rows < kTilesM; ++rows) {
#pragma unroll
      for (int j = 0; j < kTilesM; ++j) {  // registers have no run-time index
        if (j != rows) continue;
#pragma unroll
        for (int i = 0; i < kTilesN; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) mine[(m + e % 2) * kSlabRow + i * kTile + n + e / 2 * 8] = sums_[i][j][e];
        }
      }
      meet();
      if (lane() < kLanes) {
        const int in_slab = warp_k_ * kLanes + lane(), row = in_slab / 4, column = in_slab % 4;
        float sums[kItem];
#pragma unroll
        for (int e = 0; e < kItem; ++e) sums[e] = 0.f;
#pragma unroll
        for (int k = 0; k < kShape.warps_k; ++k) {
          const float* from = slab(warp() + (k - warp_k_) * kShape.warps_n * kShape.warps_m) + row * kSlabRow;
#pragma unroll
          for (int e = 0; e < kItem / 4; ++e) {
            const float4 four = *reinterpret_cast<const float4*>(from + column * kItem + e * 4);
            sums[4 * e] += four.x, sums[4 * e + 1] += four.y, sums[4 * e + 2] += four.z, sums[4 * e + 3] += four.w;
          }
        }
        body(warp_m_ * kShape.warp_m + rows * 8 + row, warp_n_ * kPackBlock + column * kItem, sums);
      }
      meet();
    }
  }

  // The sums of a tile that this CTA has from its blocks `first` of k on: the result, or a part of it.
  __device__ void finish(int tile, bool whole) const {
    const TilePlace place = problem_.template place<kIndex>(tile);
    const auto store = [&](int m, int n, float (&sums)[kItem]) {
      if (place.m + m < problem_.m && place.n + n < problem_.n) problem_.epilogue.store(sums, place.m + m, place.n + n);
    };
    constexpr int kColumns = kConfig.tile_n / kItem;
    const Parts parts = whole ? Parts{} : Parts::of(problem_.plan, tile);
    each_item([&](int m, int n, float (&sums)[kItem]) {
      if (whole) {
        store(m, n, sums);
      } else if (place.m + m < problem_.m) {
        store_part(problem_.workspace, parts.slot(blockIdx.x), kItems, m * kColumns + n / kItem, sums);
      }
    });
    if (whole) return;
    if (!arrives_last(problem_.arrivals_row, parts, flag(), [] { __syncthreads(); })) return;
    for (int item = threadIdx.x; item < kItems; item += kShape.threads) {
      const int m = item / kColumns, n = item % kColumns * kItem;
      if (place.m + m >= problem_.m || place.n + n >= problem_.n) continue;
      float sums[kItem];
      sum_parts(problem_.workspace, parts, kItems, item, sums);
      store(m, n, sums);
    }
  }

 public:
  __device__ static void run(const GemmProblem<T>& problem) {
    MmaGemm gemm(problem);
    const StreamK& plan = problem.plan;
    Cursor ahead = Cursor::begin(plan, blockIdx.x);
    Source source = Source::of(problem, ahead.tile);
    const auto step_ahead = [&] {
      const int tile = ahead.tile;
      ahead.advance(plan);
      if (ahead.tile != tile && !ahead.done(plan)) source = Source::of(problem, ahead.tile);
    };
    {  // codes do not depend on the kernel before this one, x does
      const Cursor first = ahead;
      const Source first_source = source;
      for (int slot = 0; slot < kConfig.stages && !ahead.done(plan); ++slot) {
        stage(slot).copy_weight(problem, source, ahead.block);
        step_ahead();
      }
      grid_dependency_wait();
      ahead = first;
      source = first_source;
    }
    for (int slot = 0; slot < kConfig.stages; ++slot) {
      if (!ahead.done(plan)) {
        stage(slot).copy_x(problem, source, ahead.block);
        step_ahead();
      }
      cp_async_commit();
    }
    cp_async_wait<kConfig.stages - 1>();
    __syncthreads();

    uint32_t words[kTilesN][4], x[2][kTilesM][2];
    stage(0).read_codes(words, gemm.warp_n_, gemm.warp_k_);
    stage(0).read_x(x[0], gemm.warp_m_, gemm.warp_k_, 0);
    int slot = 0;
    for (Cursor now = Cursor::begin(plan, blockIdx.x); !now.done(plan); now.advance_tile(plan)) {
      gemm.clear();
      for (int block = now.block; block < now.end; ++block) {
        const Stage current = stage(slot);
        Params params;
        gemm.read_params(params, current, 0);
#pragma unroll
        for (int step = 0; step < kTileWords; ++step) {
          if (step == 2 && problem.group_shift == 5) gemm.read_params(params, current, 1);
          uint32_t these[kTilesN];
#pragma unroll
          for (int i = 0; i < kTilesN; ++i) these[i] = words[i][step];
          if (step + 1 < kTileWords) {
            current.read_x(x[(step + 1) % 2], gemm.warp_m_, gemm.warp_k_, step + 1);
          } else {
            cp_async_wait<kConfig.stages - 2>();  // the next stage is here,
            __syncthreads();                      // and everyone has read all of this one
            if (!ahead.done(plan)) {
              current.copy_weight(problem, source, ahead.block);
              current.copy_x(problem, source, ahead.block);
              step_ahead();
            }
            cp_async_commit();
            slot = slot + 1 == kConfig.stages ? 0 : slot + 1;
            stage(slot).read_codes(words, gemm.warp_n_, gemm.warp_k_);
            stage(slot).read_x(x[0], gemm.warp_m_, gemm.warp_k_, 0);
          }
          gemm.multiply(these, params, x[step % 2]);
        }
      }
      gemm.finish(now.tile, now.block == 0 && now.end == plan.blocks);
    }
    grid_dependency_launch();
  }
};

template <typename T, int kIndex>
__global__ void __launch_bounds__(MmaShape(kGemmConfigs[kIndex]).threads, kGemmConfigs[kIndex].ctas_per_sm)
    mma_gemm_kernel(GemmProblem<T> problem) {
  MmaGemm<T, kIndex>::run(problem);
}

}  // namespace tinyserve::cuda
