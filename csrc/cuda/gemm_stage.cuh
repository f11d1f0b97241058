// gemm_stage.cuh — one stage of the mma kernel's ring in shared memory: copied there by all threads of a CTA with
// cp.async, read from there by a warp as the operands of its products.
//
// A stage holds, of tile_k consecutive k: the codes as they are packed; x as rows of 64 k (128 bytes, whose 16-byte
// units are exchanged by the row's number, so that eight rows of one unit lie in different banks); the params of the
// groups. What lies past the last k becomes zero, which adds nothing.
#pragma once

#include "gemm_problem.cuh"

namespace tinyserve::cuda {

// What one thread copies of every stage of a tile: offsets of 16 bytes into the operands, and how much is left of them.
template <typename T, int kIndex>
struct GemmSource {
  static constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  static constexpr MmaShape kShape{kConfig};
  static constexpr int kBlocks = kShape.warps_n * kShape.warps_k;  // of the weight in a stage, 64 x 64 each
  static constexpr int kBlockPieces = kBlockBytes / 16;            // of 16 bytes
  static constexpr int kParamPieces = kParamBytes / 16;
  static constexpr int kUnits = kConfig.tile_k * sizeof(T) / 16;  // of a row of x
  // What all threads together copy at once.
  static constexpr int kStepBlocks = kShape.threads / kBlockPieces, kStepRows = kShape.threads / kUnits;
  static_assert(kShape.threads % kBlockPieces == 0 && kShape.threads % kUnits == 0 && kStepRows % 8 == 0);
  static_assert(kStepBlocks % kShape.warps_k == 0 || kShape.warps_k % kStepBlocks == 0);
  static_assert(kBlocks * 2 * kParamPieces <= kShape.threads);

  uint32_t weight, params, x;
  int blocks_left, rows_left;  // of the weight and of x, from this thread's first on
  bool has_params;

  __device__ static int first_block() { return threadIdx.x / kBlockPieces; }
  __device__ static int param_block() { return threadIdx.x / kParamPieces % kBlocks; }
  __device__ static int second_group() { return threadIdx.x / kParamPieces / kBlocks; }

  __device__ static GemmSource of(const GemmProblem<T>& problem, int tile) {
    const TilePlace place = problem.template place<kIndex>(tile);
    const int block_n = place.n / kPackBlock, first_n = block_n + first_block() / kShape.warps_k;
    const int param_n = block_n + param_block() / kShape.warps_k;
    const int row = place.m + int(threadIdx.x) / kUnits;
    const int groups_of_a_block = problem.group_shift == 5 ? 2 : 1;
    return {
        .weight = (uint32_t(first_n) * problem.blocks_k + first_block() % kShape.warps_k) * kBlockPieces +
                  threadIdx.x % kBlockPieces,
        .params = uint32_t(param_n) * problem.groups * kParamPieces + threadIdx.x % kParamPieces,
        .x = uint32_t(row) * (problem.k * int(sizeof(T)) / 16) + threadIdx.x % kUnits,
        .blocks_left = problem.blocks_n - first_n,
        .rows_left = problem.m - row,
        .has_params = param_n < problem.blocks_n && second_group() < groups_of_a_block,
    };
  }
};

template <typename T, int kIndex>
struct GemmStage {
  using Source = GemmSource<T, kIndex>;
  static constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  static constexpr MmaShape kShape{kConfig};
  static constexpr StageBytes kBytes{kConfig};
  static constexpr int kRowBytes = kPackBlock * sizeof(T);  // of 64 k of x
  static constexpr int kTilesM = kShape.warp_m / 8;         // of a warp

  char* base;

  __device__ char* weight() const { return base; }
  __device__ char* x() const { return base + kBytes.weight; }
  __device__ char* params() const { return base + kBytes.weight + kBytes.x; }

  // Codes and params of stage `block` of a tile. Rows that there are not have garbage, which reaches no result; params
  // past the last k are zero, so that codes may be garbage there.
  __device__ void copy_weight(const GemmProblem<T>& problem, const Source& from, int block) const {
    const int first_k = block * kShape.warps_k;
    const int left_k = problem.blocks_k - first_k - Source::first_block() % kShape.warps_k;
    const uint32_t first = from.weight + uint32_t(first_k) * Source::kBlockPieces;
#pragma unroll
    for (int i = 0; i < kBytes.weight / 16 / kShape.threads; ++i) {
      const int bn = i * Source::kStepBlocks / kShape.warps_k, bk = i * Source::kStepBlocks % kShape.warps_k;
      const uint32_t offset = first + (uint32_t(bn) * problem.blocks_k + bk) * Source::kBlockPieces;
      if (bn < from.blocks_left && (kShape.warps_k == 1 || bk < left_k)) {
        cp_async_16_streaming(weight() + (i * kShape.threads + int(threadIdx.x)) * 16,
                              problem.qweight + uint64_t(offset) * 16);
      }
    }
    if (from.has_params) {
      const int block_k = first_k + Source::param_block() % kShape.warps_k;
      const int group = (block_k * kPackBlock + Source::second_group() * 32) >> problem.group_shift;
      const uint32_t offset = from.params + uint32_t(group) * Source::kParamPieces;
      cp_async_16_streaming(params() + threadIdx.x * 16, problem.qparams + uint64_t(offset) * 16,
                            block_k < problem.blocks_k ? 16 : 0);
    }
  }

  // Rows of x, stage `block` of a tile; zeros past the last k.
  __device__ void copy_x(const GemmProblem<T>& problem, const Source& from, int block) const {
    constexpr int kRowPieces = kRowBytes / 16;
    const int unit = threadIdx.x % Source::kUnits, row = threadIdx.x / Source::kUnits;
    const int bytes = block * kConfig.tile_k + unit * 8 < problem.k ? 16 : 0;
    char* to =
        x() + unit / kRowPieces * kConfig.tile_m * kRowBytes + row * kRowBytes + (unit % kRowPieces ^ row % 8) * 16;
    const uint32_t first = from.x + uint32_t(block) * Source::kUnits;
#pragma unroll
    for (int i = 0; i < kConfig.tile_m; i += Source::kStepRows) {
      const uint32_t offset = first + uint32_t(i) * (problem.k * int(sizeof(T)) / 16);
      if (i < from.rows_left && (kConfig.tile_m % Source::kStepRows == 0 || i + row < kConfig.tile_m)) {
        cp_async_16(to + i * kRowBytes, reinterpret_cast<const char*>(problem.x) + uint64_t(offset) * 16, bytes);
      }
    }
  }

  // A warp's codes: words[i][j] is this lane's part of the rows 16 * i .., k 16 * j .. of its 64 x 64 block.
  __device__ void read_codes(uint32_t (&words)[4][4], int warp_n, int warp_k) const {
    const int lane = threadIdx.x % 32;
    const char* block = weight() + (warp_n * kShape.warps_k + warp_k) * kBlockBytes + lane * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(block + i * kTileBytes);
      words[i][0] = four.x, words[i][1] = four.y, words[i][2] = four.z, words[i][3] = four.w;
    }
  }

  // This lane's rows r and r + 8 of each 16, for the first or second 32 k of the block.
  __device__ uint2 read_params(int i, int warp_n, int warp_k, int second) const {
    const int lane = threadIdx.x % 32;
    const char* group = params() + (second * Source::kBlocks + warp_n * kShape.warps_k + warp_k) * kParamBytes;
    return *reinterpret_cast<const uint2*>(group + i * kTile * 4 + lane / 4 * 8);
  }

  // A warp's rows of x for 16 k, the B operands of its products: x[i] of rows 8 * i ...
  __device__ void read_x(uint32_t (&operands)[kTilesM][2], int warp_m, int warp_k, int step) const {
    const int lane = threadIdx.x % 32;
    const int row = kTilesM == 1 ? lane % 8 : lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
    const char* tile = x() + (warp_k * kConfig.tile_m + warp_m * kShape.warp_m) * kRowBytes;
    const char* from = tile + row * kRowBytes + ((step * 2 + half) ^ row % 8) * 16;
    if constexpr (kTilesM == 1) {
      ldmatrix_x2(operands[0], from);
    } else {
#pragma unroll
      for (int i = 0; i < kTilesM; i += 2) {
        uint32_t four[4];
        ldmatrix_x4(four, from + i * 8 * kRowBytes);
        operands[i][0] = four[0], operands[i][1] = four[1];
        operands[i + 1][0] = four[2], operands[i + 1][1] = four[3];
      }
    }
  }
};

}  // namespace tinyserve::cuda
