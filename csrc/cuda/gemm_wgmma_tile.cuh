// gemm_wgmma_tile.cuh — a CTA's shared memory in the wgmma kernel: its stages, their barriers, its slabs.
#pragma once

#include "gemm_wgmma_shape.h"
#include "ptx.cuh"

namespace tinyserve::cuda {

template <int kIndex>
struct WgmmaTile {
  static constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  static constexpr WgmmaShape kShape{kConfig};
  static_assert(kConfig.kind == GemmKind::kWgmma && kShape.valid(kConfig));
  static constexpr int kM = kConfig.tile_m;
  static constexpr int kOwn = kShape.own;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kCluster = kConfig.cluster;

  char* base = shared_memory();

  __device__ char* x(int stage, int block_k) const {
    return base + stage * kShape.stage_bytes + block_k * kShape.x_bytes;
  }
  __device__ char* codes(int stage, int block_n) const {
    return base + stage * kShape.stage_bytes + kShape.codes_at + block_n * kShape.blocks_k * kBlockBytes;
  }
  __device__ char* params(int stage, int block_n) const {
    return base + stage * kShape.stage_bytes + kShape.params_at + block_n * kShape.max_groups * kParamBytes;
  }
  __device__ float* slab(int warpgroup) const {
    return reinterpret_cast<float*>(base + kShape.slabs_at + warpgroup * kShape.slab_bytes);
  }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(base + kShape.barriers_at) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(kStages + stage); }
  __device__ int* flag() const { return reinterpret_cast<int*>(base + kShape.flag_at); }

  // This CTA's place among those that a copy of x goes to, and what it has to do.
  __device__ static int rank() {
    if constexpr (kCluster > 1) return cluster_rank();
    return 0;
  }
  __device__ static int worker() { return blockIdx.x / kCluster; }
};

// A stage of the ring, and the parity of the times that the ring has been gone round.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace tinyserve::cuda
