// gemm_choice.h — which configuration of w4a16_gemm a shape gets where the caller names none, and how the work is
// shared.
//
// A first choice by reasoning, from sizes alone; benchmarks/tune_gemm.py measures a better one for a model and a GPU.
#pragma once

#include "device.cuh"
#include "gemm_config.h"
#include "gemm_wgmma_shape.h"
#include "stream_k.cuh"

#include <algorithm>

namespace tinyserve::cuda {

// Whether this library has code for sm_90a; where it has none, such a GPU runs that of an older one, without wgmma.
constexpr bool has_sm90a() {
#ifdef __CUDA_EMULATED__
  return true;
#else
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (arch == 900) return true;  // sm_90a: plain sm_90, the same number, does not compile
  }
  return false;
#endif
}

constexpr int shared_bytes(const GemmConfig& config) {
  return config.kind == GemmKind::kMma ? gemm_shared_bytes(config) : WgmmaShape(config).shared_bytes;
}

inline bool fits(const GemmConfig& config, const Device& device) {
  const bool known =
      config.kind == GemmKind::kMma ? device.compute_capability >= 80 : device.compute_capability == 90 && has_sm90a();
  return known && shared_bytes(config) <= device.shared_bytes;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline StreamK gemm_plan(const W4A16Args& a, const GemmConfig& config, const Device& device) {
  constexpr int kReserved = 1024;  // of shared memory, for each block
  const int side_by_side = (device.shared_bytes + kReserved) / (shared_bytes(config) + kReserved);
  const int ctas = device.multiprocessors * std::min(config.ctas_per_sm, side_by_side);
  const int64_t tiles = ceil_div(a.n, config.cluster_n()) * ceil_div(a.m, config.tile_m);
  return StreamK::plan(int(tiles), int(ceil_div(a.k, config.tile_k)), std::max(ctas / config.cluster, 1));
}

// wgmma where there is any: mma.sync reaches at most three quarters of its rate there.
inline GemmKind choose_kind(const W4A16Args& a, const Device& device) {
  const bool wgmma = device.compute_capability == 90 && has_sm90a() && a.m > kGemvMaxRows;
  return wgmma ? GemmKind::kWgmma : GemmKind::kMma;
}

// Of the configurations of the kind that fit, the one whose tiles waste least of x's rows, counting for each tile the
// rows whose products take as long as the weight's dequantization; of those the one of most rows of the weight, which
// reads x least often, unless its tiles would be cut into many parts.
inline int choose_config(const W4A16Args& a, const Device& device) {
  constexpr int64_t kDequantizeRows = 16;
  constexpr int64_t kParts = 4;
  const GemmKind kind = choose_kind(a, device);
  int best = -1;
  int64_t best_cost = 0;
  for (int i = 0; i < kNumGemmConfigs; ++i) {
    const GemmConfig& config = kGemmConfigs[i];
    if (config.kind != kind || !fits(config, device)) continue;
    const int64_t tiles_m = ceil_div(a.m, config.tile_m), cost = tiles_m * (config.tile_m + kDequantizeRows);
    const bool cut = tiles_m * ceil_div(a.n, config.cluster_n()) * kParts < device.multiprocessors / config.cluster;
    if (best < 0 || cost < best_cost || (cost == best_cost && !cut)) {
      best = i;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace tinyserve::cuda
