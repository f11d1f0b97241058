// gemm_problem.cuh — what every w4a16_gemm kernel is told: operands, sizes, the order of tiles and who computes them.
//
// Tiles are counted so that those computed at one time share what they read: all tile rows of up to kGroupM * tile_m
// rows of x before the next ones, and the tiles of one column of the weight one after another.
#pragma once

#include "epilogue.cuh"
#include "gemm_config.h"
#include "packed.cuh"
#include "stream_k.cuh"

namespace tinyserve::cuda {

constexpr int kGroupM = 8;  // tiles: x of 1024 rows stays in the second-level cache

struct TilePlace {
  int n, m;  // the first row of the weight and of x
};

template <typename T>
struct GemmProblem {
  const T* x;           // [M, K]
  const char* qweight;  // packed, see kernels.h
  const char* qparams;
  int m, n, k;
  int blocks_n, blocks_k;  // of the packed weight, 64 x 64 each
  int groups;              // that qparams holds for a row
  int group_shift;         // k >> group_shift is the group of k
  int tiles_n, tiles_m;
  StreamK plan;  // its blocks are the stages of a tile
  float* workspace;
  int arrivals_row;
  Epilogue<T> epilogue;

  GemmProblem(const W4A16Args& a, const GemmConfig& config, const StreamK& plan, void* stream)
      : x(static_cast<const T*>(a.x)),
        qweight(reinterpret_cast<const char*>(a.qweight)),
        qparams(reinterpret_cast<const char*>(a.qparams)),
        m(int(a.m)),
        n(int(a.n)),
        k(int(a.k)),
        blocks_n((n + kPackBlock - 1) / kPackBlock),
        blocks_k((k + kPackBlock - 1) / kPackBlock),
        groups(int(packed_groups(a.k, a.group_size))),
        group_shift(a.group_size == 32    ? 5
                    : a.group_size == 64  ? 6
                    : a.group_size == 128 ? 7
                                          : 31),
        tiles_n((n + config.cluster_n() - 1) / config.cluster_n()),
        tiles_m((m + config.tile_m - 1) / config.tile_m),
        plan(plan),
        workspace(a.workspace),
        arrivals_row(cuda::arrivals_row(stream)),
        epilogue(a.bias, a.residual, a.y, a.n, a.silu_mul) {}

  template <int kIndex>
  __device__ TilePlace place(int tile) const {
    constexpr int kTileN = kGemmConfigs[kIndex].tile_n * kGemmConfigs[kIndex].cluster;
    const int per_group = kGroupM * tiles_n, group = tile / per_group, in_group = tile % per_group;
    const int left = tiles_m - group * kGroupM, rows = left < kGroupM ? left : kGroupM;
    return {in_group / rows * kTileN, (group * kGroupM + in_group % rows) * kGemmConfigs[kIndex].tile_m};
  }
};

}  // namespace tinyserve::cuda
