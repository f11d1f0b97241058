// gemm_choice.h — which configuration of w4a16_gemm a shape gets where the caller names none, and how the work is
// shared.
//
// A first choice by reasoning, from sizes alone; benchmarks/tune_gemm.py measures a better one for a model and a GPU.
#pragma once

#include "device.cuh"
#include "gemm_config.h"
#include "stream_k.cuh"

#include <algorithm>

namespace tinyserve::cuda {

inline bool fits(const GemmConfig& config, const Device& device) {
  const bool known = config.kind == GemmKind::kMma ? device.compute_capability >= 80 : device.compute_capability == 90;
  return known && gemm_shared_bytes(config) <= device.shared_bytes;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline StreamK gemm_plan(const W4A16Args& a, const GemmConfig& config, const Device& device) {
  constexpr int kReserved = 1024;  // of shared memory, for each block
  const int side_by_side = (device.shared_bytes + kReserved) / (gemm_shared_bytes(config) + kReserved);
  const int ctas = device.multiprocessors * std::min(config.ctas_per_sm, side_by_side);
  const int64_t tiles = ceil_div(a.n, config.tile_n) * ceil_div(a.m, config.tile_m);
  return StreamK::plan(int(tiles), int(ceil_div(a.k, config.tile_k)), ctas);
}

// Of the configurations that fit, the one whose tiles waste least of x's rows, counting for each tile the rows whose
// products take as long as the weight's dequantization; of those the one of most rows of the weight, which reads x
// least often, unless its tiles would be cut into many parts.
inline int choose_config(const W4A16Args& a, const Device& device) {
  constexpr int64_t kDequantizeRows = 16;
  constexpr int64_t kParts = 4;
  int best = -1;
  int64_t best_cost = 0;
  for (int i = 0; i < kNumGemmConfigs; ++i) {
    const GemmConfig& config = kGemmConfigs[i];
    if (config.kind != GemmKind::kMma || !fits(config, device)) continue;
    const int64_t tiles_m = ceil_div(a.m, config.tile_m), cost = tiles_m * (config.tile_m + kDequantizeRows);
    const bool cut = tiles_m * ceil_div(a.n, config.tile_n) * kParts < device.multiprocessors;
    if (best < 0 || cost < best_cost || (cost == best_cost && !cut)) {
      best = i;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace tinyserve::cuda
