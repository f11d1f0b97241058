// gemm_wgmma.cuh — the product for Hopper: quantized weights as the register operand of the warpgroups' tensor cores.
//
// D[n, m] = W[n, k] * x[m, k]: the instruction's 64 rows are rows of the weight, which a warpgroup turns from codes
// into fp16 or bf16 in its registers; x is read where the tensor copy put it. While the tensor cores work on 16 k, the
// next 16 are dequantized into a second set of registers; at most one group of products is in flight whenever registers
// are written, so the set they read is never touched. A stage goes back to the ring one step late, when the wait that
// the registers need anyway has shown that its last product is done. Copies: gemm_wgmma_copy.cuh. Where things are in
// shared memory: gemm_wgmma_tile.cuh.
#pragma once

#include "gemm_wgmma_copy.cuh"
#include "launch.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(TINYSERVE_SM90A)
#error "build for 90a, not 90: the host counts on the wgmma kernels wherever there is code for compute capability 9.0"
#endif

namespace tinyserve::cuda {

// This lane of a warpgroup: which rows of 64 it dequantizes and sums.
struct WgmmaLane {
  int warpgroup = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  int warp = thread / 32, lane = thread % 32;
  int row = warp * kTile + lane / 4;  // and the one 8 below
  int column = lane % 4 * 2;          // of every 8 rows m, and the next one
};

// The scales and offsets of this lane's rows in one group.
template <typename T>
struct GroupParams {
  RowParams<T> rows;
  uint32_t scales[2];

  __device__ GroupParams() : GroupParams(uint2{0, 0}) {}
  __device__ explicit GroupParams(uint2 params)
      : rows(params), scales{scale_pair<T>(params.x), scale_pair<T>(params.y)} {}
};

__device__ inline uint32_t word_of(const uint4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Tells the producers, in every CTA whose copies fill it, that this warp is done with a stage.
template <typename Tile>
__device__ inline void release(const Tile& shared, int stage) {
  __syncwarp();
  const int lane = threadIdx.x % 32;
  if constexpr (Tile::kCluster > 1) {
    if (lane < Tile::kCluster) mbarrier_arrive_remote(shared.empty(stage), lane);
  } else {
    if (lane == 0) mbarrier_arrive(shared.empty(stage));
  }
}

// Adds the stages [at.block, at.end) of a tile to this warpgroup's sums of 64 rows n each.
template <typename T, typename Tile>
__device__ inline void multiply(float (&sums)[Tile::kOwn][Tile::kM / 2], const GemmProblem<T>& problem,
                                const Tile& shared, const WgmmaLane& me, const Cursor& at, Ring<Tile::kStages>& ring) {
  constexpr int kSteps = kPackBlock / kTile;  // of 16 k in a block
  uint32_t a[2][Tile::kOwn][4];
  GroupParams<T> params[Tile::kOwn];
  int loaded = -1;  // the group whose params these are
  int held = -1;    // the stage that the products in flight read
  for (int stage_of_tile = at.block; stage_of_tile < at.end; ++stage_of_tile) {
    const StageBlocks blocks = StageBlocks::of<Tile>(problem, stage_of_tile);
    const int first_group = blocks.first * kPackBlock >> problem.group_shift;
    mbarrier_wait(shared.full(ring.stage), ring.parity);
#pragma unroll 1
    for (int block = 0; block < blocks.count; ++block) {
      uint4 words[Tile::kOwn];
#pragma unroll
      for (int i = 0; i < Tile::kOwn; ++i) {
        const char* codes = shared.codes(ring.stage, me.warpgroup * Tile::kOwn + i) + block * kBlockBytes;
        words[i] = *reinterpret_cast<const uint4*>(codes + me.warp * kTileBytes + me.lane * 16);
      }
      const uint64_t x = shared_descriptor(shared.x(ring.stage, block));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (step % 2 == 0) {  // the smallest group is 32
          const int k = (blocks.first + block) * kPackBlock + step * kTile, group = k >> problem.group_shift;
          if (group != loaded) {
            loaded = group;
#pragma unroll
            for (int i = 0; i < Tile::kOwn; ++i) {
              const char* from = shared.params(ring.stage, me.warpgroup * Tile::kOwn + i) +
                                 (group - first_group) * kParamBytes + param_position(me.row) * 4;
              params[i] = GroupParams<T>(*reinterpret_cast<const uint2*>(from));
            }
          }
        }
#pragma unroll
        for (int i = 0; i < Tile::kOwn; ++i)
          dequantize_scaled<T>(a[step % 2][i], word_of(words[i], step), params[i].rows, params[i].scales);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < Tile::kOwn; ++i)
          wgmma_m64k16<T, Tile::kM>(sums[i], a[step % 2][i], x + step * (kTile * sizeof(T) / 16));
        wgmma_commit();
        wgmma_wait<1>();  // the other set of registers is free
        if (step == 0 && held >= 0) {
          release(shared, held);
          held = -1;
        }
      }
    }
    held = ring.stage;
    ring.advance();
  }
#pragma unroll
  for (int i = 0; i < Tile::kOwn; ++i) wgmma_wait<0>(sums[i]);
  release(shared, held);
}

// Turns the sums around through shared memory and calls deal(item's sums, m, row n of the CTA's part) for 16 rows n of
// one row m at a time.
template <typename Tile, typename Deal>
__device__ inline void deal_sums(float (&sums)[Tile::kOwn][Tile::kM / 2], const Tile& shared, const WgmmaLane& me,
                                 const Deal& deal) {
  constexpr int kItems = kPackBlock / kItem;  // of one row m
  float* slab = shared.slab(me.warpgroup);
  const auto meet = [&] { named_barrier_sync(1 + me.warpgroup, kWarpgroup); };
#pragma unroll
  for (int i = 0; i < Tile::kOwn; ++i) {
#pragma unroll
    for (int first = 0; first < Tile::kM; first += Tile::kShape.slab_m) {
      meet();  // everybody has read what was there
#pragma unroll
      for (int m = 0; m < Tile::kShape.slab_m; m += 8) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          slab[(m + me.column + j % 2) * kSlabRow + me.row + j / 2 * 8] = sums[i][(first + m) / 2 + j];
      }
      meet();
      for (int item = me.thread; item < Tile::kShape.slab_m * kItems; item += kWarpgroup) {
        const int m = item / kItems, n = item % kItems * kItem;
        float values[kItem];
        memcpy(values, slab + m * kSlabRow + n, sizeof values);
        deal(values, first + m, (me.warpgroup * Tile::kOwn + i) * kPackBlock + n);
      }
    }
  }
}

// What becomes of the sums of a tile, or of this CTA's part of them.
template <typename T, int kIndex>
__device__ inline void finish(float (&sums)[WgmmaTile<kIndex>::kOwn][WgmmaTile<kIndex>::kM / 2],
                              const GemmProblem<T>& problem, const WgmmaLane& me, const Cursor& at) {
  using Tile = WgmmaTile<kIndex>;
  const Tile shared;
  const TilePlace place = place_of<T, kIndex>(problem, at.tile);
  const int rows = problem.m - place.m;  // of x, that this tile has
  if (at.block == 0 && at.end == problem.plan.blocks) {
    return deal_sums(sums, shared, me, [&](float (&values)[kItem], int m, int n) {
      if (m < rows) problem.epilogue.store(values, place.m + m, place.n + n);
    });
  }
  constexpr int kOwnItems = Tile::kConfig.tile_n / kItem * Tile::kM, kItems = Tile::kCluster * kOwnItems;
  const int rank = Tile::rank();
  const Parts parts = Parts::of(problem.plan, at.tile);
  const int64_t slot = parts.slot(Tile::worker());
  deal_sums(sums, shared, me, [&](float (&values)[kItem], int m, int n) {
    const int item = rank * kOwnItems + n / kItem * Tile::kM + m;
    if (m < rows) store_part(problem.workspace, slot, kItems, item, values);
  });
  const auto meet = [] { named_barrier_sync(1 + kWarpgroups, kConsumers); };
  if (!arrives_last(problem.arrivals_row, parts, shared.flag(), meet, rank, Tile::kCluster)) return;
  for (int own = threadIdx.x; own < kOwnItems; own += kConsumers) {
    const int m = own % Tile::kM, n = own / Tile::kM * kItem;
    if (m >= rows) continue;
    float values[kItem];
    sum_parts(problem.workspace, parts, kItems, rank * kOwnItems + own, values);
    problem.epilogue.store(values, place.m + m, place.n + n);
  }
}

template <typename T, int kIndex>
__global__ void __launch_bounds__(kWgmmaThreads, kGemmConfigs[kIndex].ctas_per_sm)
    wgmma_gemm_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ GemmProblem<T> problem) {
#ifdef TINYSERVE_SM90A  // elsewhere it is never started: fits() in gemm_choice.h
  using Tile = WgmmaTile<kIndex>;
  const Tile shared;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      mbarrier_init(shared.full(stage), 2);  // the two warps that copy
      mbarrier_init(shared.empty(stage), kConsumers / 32 * Tile::kCluster);
    }
    mbarrier_fence_init();
  }
  if constexpr (Tile::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  constexpr int kWeightWarp = kConsumers / 32, kXWarp = kWeightWarp + 1;
  if (warp >= kWeightWarp) {
    set_max_registers_down<Tile::kShape.copy_registers>();
    if (warp == kXWarp) grid_dependency_wait();
    if (threadIdx.x % 32 == 0) {
      if (warp == kWeightWarp) copy_weight<T, kIndex>(problem);
      if (warp == kXWarp) copy_x<T, kIndex>(problem, x);
    }
    if (warp == kXWarp) grid_dependency_launch();  // not before this kernel's own wait
    __syncwarp();
  } else {
    set_max_registers_up<Tile::kShape.multiply_registers>();
    grid_dependency_wait();  // y and the workspace may still be in use
    const WgmmaLane me;
    const StreamK& plan = problem.plan;
    Ring<Tile::kStages> ring;
    for (Cursor at = Cursor::begin(plan, Tile::worker()); !at.done(plan); at.advance_tile(plan)) {
      float sums[Tile::kOwn][Tile::kM / 2] = {};
      multiply(sums, problem, shared, me, at, ring);
      finish<T, kIndex>(sums, problem, me, at);
    }
  }
  if constexpr (Tile::kCluster > 1) cluster_sync();  // nobody leaves while another one may still write to it
#endif
}

}  // namespace tinyserve::cuda
