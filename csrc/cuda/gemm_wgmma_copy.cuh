// gemm_wgmma_copy.cuh — the two warps of the wgmma kernel that bring its operands into the ring of stages: one the
// weight, which no kernel before this one writes and which may be asked for at once, the other x.
//
// One thread of each starts bulk copies and never waits for them: the copies count their bytes at the stage's `full`
// barrier, and the warps that multiply give the stage back at its `empty` barrier.
#pragma once

#include "gemm_problem.cuh"
#include "gemm_wgmma_tile.cuh"

#include <cuda.h>

namespace tinyserve::cuda {

// Which of the blocks of 64 k a stage holds, and how many: the last one of a tile may be short.
struct StageBlocks {
  int first, count;

  template <typename Tile, typename T>
  __device__ static StageBlocks of(const GemmProblem<T>& problem, int stage_of_tile) {
    const int first = stage_of_tile * Tile::kShape.blocks_k;
    return {first, min(Tile::kShape.blocks_k, problem.blocks_k - first)};
  }
};

// Where this CTA's part of a tile begins. The CTAs of a cluster multiply neighbouring rows of the weight.
template <typename T, int kIndex>
__device__ inline TilePlace place_of(const GemmProblem<T>& problem, int tile) {
  using Tile = WgmmaTile<kIndex>;
  TilePlace place = problem.template place<kIndex>(tile);
  place.n += Tile::rank() * Tile::kConfig.tile_n;
  return place;
}

// Calls copy(place of the tile, blocks, stage) for every stage that this CTA multiplies, once the stage is empty.
template <typename T, int kIndex, typename Copy>
__device__ inline void each_stage(const GemmProblem<T>& problem, const Copy& copy) {
  using Tile = WgmmaTile<kIndex>;
  const Tile shared;
  const StreamK& plan = problem.plan;
  Ring<Tile::kStages> ring;
  for (Cursor at = Cursor::begin(plan, Tile::worker()); !at.done(plan); at.advance_tile(plan)) {
    const TilePlace place = place_of<T, kIndex>(problem, at.tile);
    for (int stage = at.block; stage < at.end; ++stage, ring.advance()) {
      mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      copy(place, StageBlocks::of<Tile>(problem, stage), ring.stage);
    }
  }
}

// Codes and params. Rows past the last block of the weight get that block's again: they are multiplied and not stored.
template <typename T, int kIndex>
__device__ inline void copy_weight(const GemmProblem<T>& problem) {
  using Tile = WgmmaTile<kIndex>;
  const Tile shared;
  each_stage<T, kIndex>(problem, [&](const TilePlace& place, const StageBlocks& blocks, int stage) {
    const int group = blocks.first * kPackBlock >> problem.group_shift;
    const int groups = (((blocks.first + blocks.count) * kPackBlock - 1) >> problem.group_shift) + 1 - group;
    const int code_bytes = blocks.count * kBlockBytes, param_bytes = groups * kParamBytes;
    uint64_t* full = shared.full(stage);
    mbarrier_expect_bytes(full, Tile::kShape.blocks_n * (code_bytes + param_bytes));
#pragma unroll
    for (int i = 0; i < Tile::kShape.blocks_n; ++i) {
      const int64_t block_n = min(place.n / kPackBlock + i, problem.blocks_n - 1);
      const char* codes = problem.qweight + (block_n * problem.blocks_k + blocks.first) * kBlockBytes;
      const char* params = problem.qparams + (block_n * problem.groups + group) * kParamBytes;
      bulk_copy(shared.codes(stage, i), codes, code_bytes, full);
      bulk_copy(shared.params(stage, i), params, param_bytes, full);
    }
  });
}

// x. Each CTA of a cluster copies an equal part of the rows to all of them; rows and columns past x become zero.
template <typename T, int kIndex>
__device__ inline void copy_x(const GemmProblem<T>& problem, const CUtensorMap& x) {
  using Tile = WgmmaTile<kIndex>;
  const Tile shared;
  each_stage<T, kIndex>(problem, [&](const TilePlace& place, const StageBlocks& blocks, int stage) {
    uint64_t* full = shared.full(stage);
    mbarrier_expect_bytes(full, blocks.count * Tile::kShape.x_bytes);
    for (int i = 0; i < blocks.count; ++i) {
      const int k = (blocks.first + i) * kPackBlock;
      if constexpr (Tile::kCluster > 1) {
        const int part = Tile::rank() * (Tile::kM / Tile::kCluster);
        tensor_copy_2d_multicast(shared.x(stage, i) + part * kXRowBytes, &x, k, place.m + part, full,
                                 (1 << Tile::kCluster) - 1);
      } else {
        tensor_copy_2d(shared.x(stage, i), &x, k, place.m, full);
      }
    }
  });
}

}  // namespace tinyserve::cuda
