// attention_token.cuh — a decoded token as it comes from the projection: its queries turned on their way to shared
// memory, and its own key and value turned, rounded, written to the cache and attended to.
//
// Several CTAs may need the new key at once: those of a row tile each, where more heads share a key head than a row
// tile has rows. Nobody reads it from the cache, where it may or may not have arrived. The CTA that has a row tile's
// last keys makes it in shared memory, and puts it into the tile between two barriers, once the copies of the tile's
// other keys are there: so no CTA waits for another, and no fence is needed. Of these CTAs the first row tile's writes
// it to the cache, for later launches. All make the same bits: rotary.cuh.
//
// A token without a slot, the padding of a batch, sees its own key like any other; nothing of it is kept.
#pragma once

#include "attention_queries.cuh"
#include "attention_ring.cuh"
#include "rotary.cuh"

namespace tinyserve::cuda {

template <typename Shape>
class NewToken {
 public:
  using T = typename Shape::T;
  using Cache = typename Shape::Cache;

  __device__ explicit NewToken(char* memory) : key_(memory + Shape::kTokenAt) {}

  // Fills the queries of the walk's row tile and, where this CTA will come to its last keys, the new key and value.
  __device__ void rotate(const RotatingJob& job, const AttentionWalk<Shape>& walk, char* queries) const {
    each_query_piece(job, walk, [&](int row, int d, bool exists) {
      if (!exists) store_query<Shape>(queries, row, d, uint4{});
    });
    const RopeKvWriteArgs& a = job.rope;
    const int num_rows = walk.num_rows(job), token = walk.rows.first_token;
    const bool has_key = walk.left >= walk.end_tile() - walk.tile;
    const int slot = walk.row_tile == 0 ? a.slots[token] : -1;
    const int64_t cached = cache_row(a, slot, walk.kv_head);
    const int heads = num_rows + (has_key ? 2 : 0), lane = threadIdx.x % kLanes;
    for (int first = 0; first < heads; first += Shape::kThreads / kLanes) {
      const int index = first + threadIdx.x / kLanes;  // of the row tile's rows, then the key, then the value
      const bool is_query = index < num_rows, is_value = index == num_rows + 1;
      const int head = is_query ? walk.kv_head * job.group + walk.first_row() + index
                                : int(a.num_heads + (is_value ? a.num_kv_heads : 0)) + walk.kv_head;
      const RotaryHead<T, kSize, 1> turned(a, token, head, lane, kLanes, index < heads);
      if (is_query) {
        turned.each_piece([&](int d, const Piece& values) { store_query<Shape>(queries, index, d, in_bits(values)); });
      }
      const bool stores = !is_query && index < heads, writes = stores && slot >= 0;
      auto* fresh = reinterpret_cast<Cache*>(is_value ? value() : key_);
      Cache* to = static_cast<Cache*>(is_value ? a.v_cache : a.k_cache) + cached * a.head_dim;
      if constexpr (Shape::kHasScales) {
        const CodeScale<Cache> code(turned.largest(kLanes));
        if (stores) turned.each_piece([&](int d, const Piece& values) { code.store(fresh + d, values); });
        if (writes) turned.each_piece([&](int d, const Piece& values) { code.store(to + d, values); });
        if (stores && lane == 0) scales()[is_value] = code.scale;
        if (writes && lane == 0) (is_value ? a.v_scales : a.k_scales)[cached] = code.scale;
      } else {
        if (stores) turned.each_piece([&](int d, const Piece& values) { store_some<kSize>(fresh + d, values); });
        if (writes) turned.each_piece([&](int d, const Piece& values) { store_some<kSize>(to + d, values); });
      }
    }
  }

  // Puts the new key and value into a tile of the ring; barriers must separate this from rotate() and from the
  // products.
  __device__ void join(const AttentionJob& job, const KeyRing<Shape>& ring, int stage, int key) const {
    const int chunks = int(job.a.head_dim * sizeof(Cache) / 16);
    static_assert(Shape::kThreads >= 2 * Shape::kChunks);
    const int chunk = threadIdx.x % Shape::kChunks, which = threadIdx.x / Shape::kChunks;
    if (which < 2 && chunk < chunks) {
      *reinterpret_cast<uint4*>(key_at<Shape>(which == 0 ? ring.keys(stage) : ring.values(stage), key, chunk)) =
          reinterpret_cast<const uint4*>(which == 0 ? key_ : value())[chunk];
    }
    if constexpr (Shape::kHasScales) {
      if (threadIdx.x < 2) ring.scales(stage)[threadIdx.x * Shape::kKeys + key] = scales()[threadIdx.x];
    }
  }

 private:
  static constexpr int kSize = kVecSize<T>;               // elements of a piece
  static constexpr int kLanes = Shape::kDim / 2 / kSize;  // threads that have a head together
  static_assert(kLanes <= kWarpSize && Shape::kThreads % kLanes == 0);
  using Piece = float[kSize];

  __device__ static uint4 in_bits(const Piece& values) {
    Vec<T> vec;
#pragma unroll
    for (int i = 0; i < kSize; ++i) vec.values[i] = values[i];
    return to_bits(vec);
  }

  __device__ char* value() const { return key_ + Shape::kChunks * 16; }
  __device__ float* scales() const { return reinterpret_cast<float*>(key_ + 2 * Shape::kChunks * 16); }

  char* key_;  // in shared memory: the key, the value, their scales
};

}  // namespace tinyserve::cuda
