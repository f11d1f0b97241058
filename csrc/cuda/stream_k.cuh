// stream_k.cuh — how the CTAs of a persistent grid share the tiles of a product, and how the parts of a split tile
// meet.
//
// A unit of work is one block of k of one tile. Where there are fewer than two tiles for each CTA, or for what is left
// over beyond whole rounds, every CTA takes an equal run of consecutive units (Osama et al., Stream-K); the other tiles
// are taken whole, one round after another. The split tiles come first, so that their reduction hides behind the rest.
// A CTA that has a part of a tile stores its fp32 sums and counts itself; the last one to arrive adds all parts in the
// order of k and goes on with the result: nobody waits, and the same call gives the same bits.
//
// An item is 16 consecutive columns n of one row m of a tile, the unit of the epilogue. This file knows neither
// operands nor what a kernel does with the sums.
#pragma once

#include "ptx.cuh"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace tinyserve::cuda {

constexpr int kItem = 16;     // columns
constexpr int kMaxParts = 8;  // of a tile, about: the last arriver reads them all
constexpr int kMaxCtas = 1024;
constexpr int kMaxStreams = 128;

// Arrivals at the split tiles of one launch, at the place of the tile's first CTA. Zero when no kernel runs: the last
// arriver leaves it so. Launches of one stream follow each other and share a row; those of two streams do not. A graph
// keeps the row of the stream that it was captured on, wherever it is replayed: of graphs captured on one stream only
// one may run at a time (tinyserve/engine/cuda_graph.py).
static __device__ int arrivals[kMaxStreams][kMaxCtas];

// The row of `arrivals` for launches on this stream.
inline int arrivals_row(void* stream) {
  static std::mutex mutex;
  static std::unordered_map<void*, int> rows;
  const std::lock_guard lock(mutex);
  const int row = rows.try_emplace(stream, int(rows.size())).first->second;
  if (row >= kMaxStreams) throw std::runtime_error("w4a16_gemm: called on more than 128 streams");
  return row;
}

struct StreamK {
  int tiles, blocks;  // of k, in a tile
  int ctas;
  int split_tiles;  // the first ones; the rest is taken whole

  static StreamK plan(int tiles, int blocks, int max_ctas) {
    const int parts = std::min(blocks, kMaxParts);
    const int ctas = int(std::min<int64_t>({max_ctas, kMaxCtas, int64_t(tiles) * parts}));
    const int rounds = tiles / ctas;
    const int split = tiles % ctas == 0 ? 0 : rounds < 2 ? tiles : tiles - (rounds - 1) * ctas;
    return {tiles, blocks, ctas, split};
  }

  // Floats where the parts of all CTAs meet: a CTA's first and last tile may be split.
  int64_t workspace(int tile_items) const { return split_tiles == 0 ? 0 : int64_t(ctas) * 2 * tile_items * kItem; }

  // The first unit of a CTA's run, and the CTA whose run holds a unit.
  __host__ __device__ int first_unit(int cta) const { return int(int64_t(split_tiles) * blocks * cta / ctas); }
  __host__ __device__ int owner(int unit) const {
    return int((int64_t(unit + 1) * ctas - 1) / (int64_t(split_tiles) * blocks));
  }
};

// One CTA's work, block of k by block of k.
struct Cursor {
  int tile, block;
  int end;        // of this tile's blocks of k that are this CTA's
  int units;      // left in the run of split tiles, those of this tile not counted
  int next_tile;  // to be taken whole

  __device__ static Cursor begin(const StreamK& plan, int cta) {
    const int first = plan.first_unit(cta);
    Cursor cursor{};
    cursor.units = plan.first_unit(cta + 1) - first;
    cursor.next_tile = plan.split_tiles + cta;
    if (cursor.units > 0) {
      cursor.tile = first / plan.blocks;
      cursor.take(plan, first % plan.blocks);
    } else {
      cursor.take_whole(plan);
    }
    return cursor;
  }

  __device__ bool done(const StreamK& plan) const { return tile >= plan.tiles; }
  __device__ bool last_block() const { return block + 1 == end; }

  __device__ void advance(const StreamK& plan) {
    if (++block < end) return;
    advance_tile(plan);
  }
  __device__ void advance_tile(const StreamK& plan) {
    if (units > 0) {
      ++tile;
      take(plan, 0);
    } else {
      take_whole(plan);
    }
  }

 private:
  __device__ void take(const StreamK& plan, int from) {
    block = from;
    end = min(plan.blocks, from + units);
    units -= end - from;
  }
  __device__ void take_whole(const StreamK& plan) {
    tile = next_tile;
    block = 0;
    end = plan.blocks;
    next_tile += plan.ctas;
  }
};

// The CTAs that share a split tile, first..last, and where they store their parts.
struct Parts {
  int first, last;
  bool first_in_second;  // the first CTA's run began in an earlier tile: this part is its second

  __device__ static Parts of(const StreamK& plan, int tile) {
    Parts parts{};
    parts.first = plan.owner(tile * plan.blocks);
    parts.last = plan.owner((tile + 1) * plan.blocks - 1);
    parts.first_in_second = plan.first_unit(parts.first) < tile * plan.blocks;
    return parts;
  }
  __device__ int count() const { return last - first + 1; }
  __device__ int64_t slot(int cta) const { return int64_t(cta) * 2 + (cta == first && first_in_second); }
};

// A part in the workspace: of all items the first four columns, then the next four, ...: lanes with consecutive items
// touch consecutive 16 bytes.
__device__ inline void store_part(float* workspace, int64_t slot, int items, int item, const float (&sums)[kItem]) {
  float4* part = reinterpret_cast<float4*>(workspace) + slot * items * (kItem / 4) + item;
#pragma unroll
  for (int i = 0; i < kItem / 4; ++i)
    part[int64_t(i) * items] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
}

// Called by every thread that stores items of a part, once it has: thread 0 is one of them, meet() a barrier of theirs,
// *flag in shared memory. True, in all of them, for the last CTA to arrive. The CTAs of a cluster that have a tile
// together meet those of the same rank.
template <typename Meet>
__device__ inline bool arrives_last(int row, const Parts& parts, int* flag, const Meet& meet, int rank = 0,
                                    int cluster = 1) {
  __threadfence();
  meet();
  if (threadIdx.x == 0) {
    int* counter = &arrivals[row][parts.first * cluster + rank];
    const bool last = atomicAdd(counter, 1) + 1 == parts.count();
    if (last) *counter = 0;
    *flag = last;
  }
  meet();
  __threadfence();
  return *flag != 0;
}

// The sums of one item over all parts, in the order of k.
__device__ inline void sum_parts(const float* workspace, const Parts& parts, int items, int item,
                                 float (&sums)[kItem]) {
#pragma unroll
  for (int i = 0; i < kItem; ++i) sums[i] = 0.f;
  for (int cta = parts.first; cta <= parts.last; ++cta) {
    const float4* part = reinterpret_cast<const float4*>(workspace) + parts.slot(cta) * items * (kItem / 4) + item;
#pragma unroll
    for (int i = 0; i < kItem / 4; ++i) {
      const float4 more = __ldcg(part + int64_t(i) * items);
      sums[4 * i] += more.x;
      sums[4 * i + 1] += more.y;
      sums[4 * i + 2] += more.z;
      sums[4 * i + 3] += more.w;
    }
  }
}

}  // namespace tinyserve::cuda
