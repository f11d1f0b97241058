// attention_shape.cuh — the sizes of paged_attention's pieces, all known when it is compiled.
//
// A row is one query of one head; the rows of a request are its queries in their order, for each the heads that share a
// key head. A CTA multiplies a row tile by tiles of keys. Decoding has few rows and much to read: the warps share out
// the keys of a tile. Prefill has many rows: the warps share out the rows.
#pragma once

#include "attention.h"
#include "cache_dtype.cuh"
#include "reduce.cuh"

#include <algorithm>

namespace tinyserve::cuda {

// A head of `Dim` elements or fewer; elements past its own count as zero.
template <typename Type, typename CacheType, int Dim, Phase kPhase>
struct AttentionShape {
  using T = Type;  // of the activations
  using Cache = CacheType;
  static constexpr bool kHasScales = sizeof(Cache) == 1;
  static constexpr bool kDecodes = kPhase != Phase::kPrefill;
  static constexpr bool kRotates = kPhase == Phase::kRopeDecode;
  static constexpr int kDim = Dim;

  static constexpr int kKeys = kDim <= 128 ? 64 : 32;  // of a tile
  static constexpr int kKeyWarps = kDecodes ? kKeys / 16 : 1;
  static constexpr int kRowWarps = kDecodes ? 1 : 4;
  static constexpr int kRowTiles = kDecodes || kDim > 128 ? 1 : 2;  // of 16 rows, that a warp has
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarpRows * kRowWarps;
  static constexpr int kWarps = kKeyWarps * kRowWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  // Keys between two looks for a row's maximum: more where the registers have room for their scores.
  static constexpr int kStep = kDecodes || kDim == 128 ? 16 : 32;
  static constexpr int kMinShare = kDecodes ? 2 : 4;  // tiles of keys that are worth a CTA of their own

  // In shared memory: the queries, then stages of keys and values with their scales, then where their rows lie.
  static constexpr int kQueryBytes = kRows * kDim * int(sizeof(T));
  static constexpr int kChunks = kDim * int(sizeof(Cache)) / 16;  // of 16 bytes, of one key
  static constexpr int kTileBytes = kKeys * kChunks * 16;         // of keys, or of values
  static constexpr int kScaleBytes = kHasScales ? 2 * kKeys * int(sizeof(float)) : 0;
  static constexpr int kStageBytes = 2 * kTileBytes + kScaleBytes;
  static constexpr int kStages = std::clamp((64 << 10) / kStageBytes, 2, 4);
  static constexpr int kRowsAt = kQueryBytes + kStages * kStageBytes;
  static constexpr int kScratchAt = kRowsAt + kStages * kKeys * int(sizeof(int));
  static constexpr int kScratchBytes = 2 * kWarpSize * 16;
  static constexpr int kShareAt = kScratchAt + kScratchBytes;  // AttentionShare
  static constexpr int kTokenAt = kShareAt + 256;              // NewToken
  static constexpr int kTokenBytes = kRotates ? 2 * kChunks * 16 + 16 : 0;
  static constexpr int kSharedBytes = kTokenAt + kTokenBytes;
  static_assert(kSharedBytes <= 99 << 10, "the smallest limit, that of sm_86, sm_89 and sm_120");

  // What the registers allow; the shared memory may allow fewer.
  static constexpr int kMaxCtas = kDecodes ? 3 : 2;

  // Of a row tile's partial result: the weighted values, then each row's maximum and sum.
  static constexpr int64_t kPartFloats = int64_t(kRows) * (kDim + 2);

  // The multiprocessor's shared memory is 1 KB more than the most that one block can have; each block costs 1 KB too.
  static int ctas(int multiprocessors, int shared_bytes) {
    return multiprocessors * std::clamp((shared_bytes + 1024) / (kSharedBytes + 1024), 1, kMaxCtas);
  }
};

// 16 bytes of one key or value in its tile in shared memory; of one query. Swizzled, so that the rows of an operand lie
// in different banks.
template <typename Shape>
__device__ inline char* key_at(char* tile, int key, int chunk) {
  const int swizzle = Shape::kChunks >= 8 ? key % 8 : key / 2 % 4;
  return tile + (key * Shape::kChunks + (chunk ^ swizzle)) * 16;
}
template <typename Shape>
__device__ inline char* query_at(char* queries, int row, int chunk) {
  return queries + (row * (Shape::kDim * int(sizeof(typename Shape::T)) / 16) + (chunk ^ (row % 8))) * 16;
}

}  // namespace tinyserve::cuda
