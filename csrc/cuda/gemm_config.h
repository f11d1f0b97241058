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
};

// By kind, then by tile_m, then by tile_n.
inline constexpr GemmConfig kGemmConfigs[] = {
    {"mma_n128_m8_k256", GemmKind::kMma, 128, 8, 256, 4, 1, 1},
    {"mma_n128_m16_k128", GemmKind::kMma, 128, 16, 128, 4, 2, 1},
    {"mma_n256_m16_k128", GemmKind::kMma, 256, 16, 128, 4, 1, 1},
    {"mma_n128_m32_k128", GemmKind::kMma, 128, 32, 128, 4, 2, 1},
    {"mma_n256_m32_k64", GemmKind::kMma, 256, 32, 64, 4, 2, 1},
    {"mma_n128_m64_k128", GemmKind::kMma, 128, 64, 128, 3, 1, 1},
    {"mma_n256_m64_k64", GemmKind::kMma, 256, 64, 64, 4, 2, 1},
    {"mma_n128_m128_k64", GemmKind::kMma, 128, 128, 64, 3, 2, 1},
    {"mma_n256_m128_k64", GemmKind::kMma, 256, 128, 64, 3, 1, 1},
};
constexpr int kNumGemmConfigs = sizeof(kGemmConfigs) / sizeof(kGemmConfigs[0]);

}  // namespace tinyserve::cuda
