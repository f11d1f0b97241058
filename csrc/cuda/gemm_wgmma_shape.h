// gemm_wgmma_shape.h — what follows from a configuration of kWgmma: how two warpgroups share a tile, and where its
// operands lie in shared memory.
//
// A stage of the ring holds, of tile_k consecutive k:
//   x: for every 64 k the tile's rows, 128 bytes each, their 16-byte units exchanged by the row's number (the 128-byte
//     swizzle of tensor copies and of wgmma)
//   codes: for every 64 rows n the blocks of 64 k, as they are packed
//   params: for every 64 rows n the groups that the stage touches, as they are packed
#pragma once

#include "gemm_config.h"
#include "packed.cuh"

namespace tinyserve::cuda {

constexpr int kWarpgroup = 128;  // threads
constexpr int kWarpgroups = 2;   // that multiply
constexpr int kConsumers = kWarpgroups * kWarpgroup;
constexpr int kWgmmaThreads = kConsumers + kWarpgroup;  // the third warpgroup copies
constexpr int kXRowBytes = 128;                         // of 64 k

struct WgmmaShape {
  int blocks_n, blocks_k;  // of the packed weight in a stage, 64 x 64 each
  int own;                 // of blocks_n, one warpgroup's
  int max_groups;          // that a stage touches

  int x_bytes;  // of 64 k
  int codes_at, params_at, stage_bytes;

  int slab_m;  // rows m of its sums that a warpgroup turns around at a time, as floats in its slab
  int slab_bytes, slabs_at;
  int barriers_at, flag_at, shared_bytes;

  // Of a thread. All start with the same; then the warps that copy leave theirs to those that multiply.
  int start_registers, copy_registers, multiply_registers;

  explicit constexpr WgmmaShape(const GemmConfig& config)
      : blocks_n(config.tile_n / kPackBlock),
        blocks_k(config.tile_k / kPackBlock),
        own(blocks_n / kWarpgroups),
        max_groups(2 * blocks_k),
        x_bytes(config.tile_m * kXRowBytes),
        codes_at(blocks_k * x_bytes),
        params_at(codes_at + blocks_n * blocks_k * kBlockBytes),
        stage_bytes(params_at + blocks_n * max_groups * kParamBytes),
        slab_m(config.tile_m < 64 || config.ctas_per_sm > 1 ? 16 : 64),
        slab_bytes(slab_m * kSlabRow * 4),
        slabs_at(config.stages * stage_bytes),
        barriers_at(slabs_at + kWarpgroups * slab_bytes),
        flag_at(barriers_at + 2 * config.stages * 8),
        shared_bytes(flag_at + kFlagBytes),
        start_registers(65536 / (config.ctas_per_sm * kWgmmaThreads) / 8 * 8),
        copy_registers(config.ctas_per_sm == 1 ? 56 : 48),
        multiply_registers(config.ctas_per_sm == 1 ? 224 : 96) {}

  constexpr bool valid(const GemmConfig& config) const {
    constexpr int kSharedOfSm = 228 << 10, kReserved = 1024;  // of which the system takes 1 KB for each block
    constexpr int kSwizzled = 1024;                           // bytes on which a swizzled tile begins
    return own * kWarpgroups * kPackBlock == config.tile_n && blocks_k * kPackBlock == config.tile_k &&
           config.tile_m % slab_m == 0 && x_bytes / config.cluster % kSwizzled == 0 && stage_bytes % kSwizzled == 0 &&
           config.stages >= 2 &&  // one is given back a step late
           config.ctas_per_sm * (shared_bytes + kReserved) <= kSharedOfSm &&
           kWarpgroup * copy_registers + kConsumers * multiply_registers <= kWgmmaThreads * start_registers;
  }
};

}  // namespace tinyserve::cuda
