// gemm_config.h — the tile configurations of w4a16_gemm, as data: what is compiled, listed, tried in tests and timed by
// benchmarks/tune_gemm.py.
//
// It knows sizes only. A configuration is named by its place in the table, which a call may give; which one suits a
// shape is decided in gemm_choice.h, which GPUs can run it follows from its shared memory and its kind.
#pragma once

#include "../kernels.h"

#include <cstddef>

namespace tinyserve::cuda {

enum class GemmKind {
  kMma,    // mma.sync and cp.async: sm_80 and up
  kWgmma,  // wgmma and bulk copies: sm_90a alone
};

struct GemmConfig {
  const char* name;
  GemmKind kind;
  int tile_n;       // rows of the weight that a CTA multiplies: a multiple of 64
  int tile_m;       // rows of x
  int tile_k;       // elements of k in one stage: a multiple of 64
  int stages;       // of the ring in shared memory
  int ctas_per_sm;  // that run side by side
  int cluster;      // CTAs that receive one copy of x; 1: none

  constexpr int cluster_n() const { return tile_n * cluster; }  // rows of the weight that a copy of x serves
};

// By kind, then by tile_m, then by tile_n.
inline constexpr GemmConfig kGemmConfigs[] = {
    {"mma_n128_m8_k256", GemmKind::kMma, 128, 8, 256, 4, 1, 1},
    {"mma_n128_m16_k128", GemmKind::kMma, 128, 16, 128, 4, 2, 1},
    {"mma_n256_m16_k128", GemmKind::kMma, 256, 16, 128, 4, 1, 1},
    {"mma_n128_m32_k128", GemmKind::kMma, 128, 32, 128, 4, 2, 1},
    {"mma_n256_m32_k64", GemmKind::kMma, 256, 32, 64, 4, 2, 1},
    {"mma_n256_m64_k64", GemmKind::kMma, 256, 64, 64, 4, 2, 1},
    {"mma_n128_m128_k64", GemmKind::kMma, 128, 128, 64, 3, 2, 1},
    {"mma_n256_m128_k64", GemmKind::kMma, 256, 128, 64, 3, 1, 1},
    {"wgmma_n128_m16_k128", GemmKind::kWgmma, 128, 16, 128, 7, 2, 1},
    {"wgmma_n128_m32_k128", GemmKind::kWgmma, 128, 32, 128, 5, 2, 1},
    {"wgmma_n128_m64_k128", GemmKind::kWgmma, 128, 64, 128, 4, 2, 1},
    {"wgmma_n128_m64_k128_c2", GemmKind::kWgmma, 128, 64, 128, 4, 2, 2},
    {"wgmma_n256_m64_k128", GemmKind::kWgmma, 256, 64, 128, 5, 1, 1},
    {"wgmma_n128_m128_k64", GemmKind::kWgmma, 128, 128, 64, 8, 1, 1},
    {"wgmma_n256_m128_k64", GemmKind::kWgmma, 256, 128, 64, 7, 1, 1},
    {"wgmma_n256_m128_k64_c2", GemmKind::kWgmma, 256, 128, 64, 7, 1, 2},
    {"wgmma_n128_m256_k64", GemmKind::kWgmma, 128, 256, 64, 5, 1, 1},
    {"wgmma_n128_m256_k64_c2", GemmKind::kWgmma, 128, 256, 64, 5, 1, 2},
};
constexpr int kNumGemmConfigs = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);

// How kMma shares a tile: a warp takes 64 rows n, up to 64 rows m and 64 of a stage's k.
struct MmaShape {
  int warps_n, warps_m, warps_k, warp_m, warps, threads;

  explicit constexpr MmaShape(const GemmConfig& config)
      : warps_n(config.tile_n / 64),
        warps_m(config.tile_m > 64 ? config.tile_m / 64 : 1),
        warps_k(config.tile_k / 64),
        warp_m(config.tile_m / warps_m),
        warps(warps_n * warps_m * warps_k),
        threads(32 * warps) {}
};

// Shared memory of a stage: codes, x, and the params of one or two groups for each 64 x 64 block of the weight.
struct StageBytes {
  int weight, x, params, all;

  explicit constexpr StageBytes(const GemmConfig& config)
      : weight(config.tile_n * config.tile_k / 2),
        x(config.tile_m * config.tile_k * 2),
        params(config.tile_n * config.tile_k / 8),
        all(weight + x + params) {}
};

// Where a warp turns 8 rows m of its sums around, as floats; rows a bank apart.
constexpr int kSlabRow = 64 + 4;
constexpr int kSlabBytes = 8 * kSlabRow * 4;
constexpr int kFlagBytes = 16;  // for what one thread tells the others of its CTA

constexpr int gemm_shared_bytes(const GemmConfig& config) {
  return config.stages * StageBytes(config).all + MmaShape(config).warps * kSlabBytes + kFlagBytes;
}

}  // namespace tinyserve::cuda
