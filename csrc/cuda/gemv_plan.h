// gemv_plan.h — how w4a16_gemv shares a weight among CTAs and warps, and how much of x a CTA stages at once.
//
// A unit is 128 k of a tile of 16 n: 1 KB of codes, what a warp loads at once. The units of a CTA, in the order of
// tiles and then of k, are shared equally by its warps, whatever tile they fall into. A CTA has whole tiles, so that
// nothing needs to be summed across CTAs, unless the CTA with the most of them would have more to read on top than a
// sum across CTAs takes; then each has an equal run of units (stream_k.cuh).
//
// It works in passes: over at most kRoundTiles tiles at a time, whose sums wait in shared memory, and over as much of k
// as the rows of x fit there. Nearly always there is one pass.
#pragma once

#include "stream_k.cuh"

namespace tinyserve::cuda {

constexpr int kUnitK = 128;
constexpr int kGemvWarps = 16;
constexpr int kRoundTiles = 32;

// What a multiprocessor reads while a sum across CTAs goes through the second-level cache, some 2 us. Estimated.
constexpr int64_t kFixupBytes = 64 << 10;

constexpr int kPartStride = 20;               // floats between rows m of a part: lanes that store meet no bank twice
constexpr int kPartFloats = 8 * kPartStride;  // sums of 16 n x 8 m

struct GemvPlan {
  StreamK share;      // its split_tiles: none, CTAs have whole tiles; or all, they have equal runs of units
  int units;          // in a tile
  int chunk, chunks;  // units of k whose x is staged at once, and how many such there are
  int rows;           // staged: those of x, then the weight of their norm where it is computed here
  int x_stride;       // bytes from row to row of them, without bank conflicts
  int parts, totals;  // tiles' sums in shared memory: by warp, and over chunks of k
  size_t shared_bytes;

  static GemvPlan make(int m, int64_t n, int64_t k, bool norm, int multiprocessors, int shared_limit) {
    GemvPlan plan{};
    const int tiles = int((n + 15) / 16);
    plan.units = int((k + kUnitK - 1) / kUnitK);
    plan.rows = m + (norm ? 1 : 0);
    plan.share = {tiles, plan.units, std::min({tiles, multiprocessors, kMaxCtas}), 0};
    const int most = (tiles + plan.share.ctas - 1) / plan.share.ctas;  // tiles of a CTA
    if (!plan.fit_x(m, std::min(most, kRoundTiles), shared_limit)) return plan;

    const int64_t tile_bytes = k * 8, surplus = most * tile_bytes - tiles * tile_bytes / multiprocessors;
    if (surplus > kFixupBytes) {
      const int64_t ctas = std::min<int64_t>(multiprocessors, int64_t(tiles) * std::min(plan.units, kMaxParts));
      plan.share = {tiles, plan.units, int(std::min<int64_t>(ctas, kMaxCtas)), tiles};
    }
    return plan;
  }

  __host__ __device__ bool split() const { return share.split_tiles != 0; }

  // The first unit of a CTA in the order of all units.
  __device__ int first_unit(int cta) const {
    return split() ? share.first_unit(cta) : int(int64_t(share.tiles) * cta / share.ctas) * units;
  }

 private:
  // Chunks of k so that the rows fit beside the sums of `tiles` tiles; whether one chunk is enough.
  bool fit_x(int m, int tiles, int shared_limit) {
    // Each tile and each boundary between warps adds a part; equal runs may touch a tile more.
    parts = tiles + 1 + kGemvWarps - 1;
    const int64_t whole = rows * int64_t(units * kUnitK + 8) * 2, sums = int64_t(parts) * kPartFloats * 4 + 16;
    totals = whole + sums <= shared_limit ? 0 : tiles * m;
    const int64_t fixed = sums + int64_t(totals) * kItem * 4;
    const int fitting = int(((shared_limit - fixed) / rows - 16) / (kUnitK * 2));
    chunks = (units + fitting - 1) / fitting;
    chunk = (units + chunks - 1) / chunks;
    x_stride = (chunk * kUnitK + 8) * 2;
    shared_bytes = size_t(rows * x_stride + fixed);
    return chunks == 1;
  }
};

}  // namespace tinyserve::cuda
