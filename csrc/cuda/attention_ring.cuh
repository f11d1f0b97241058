// attention_ring.cuh — tiles of keys and values on their way from the pages of the cache to shared memory, several
// tiles ahead of the products.
//
// Where a key lies is read from the page table one tile before its copy starts: the table's latency is then no part of
// the copy's. Keys that the rows do not see, and elements past the head's own, are zeros that nobody reads from memory:
// whatever unused slots hold cannot leak, not even through 0 * NaN. So is a decoded token's own key where it is not in
// the cache yet: attention_token.cuh puts it there. Chunks of 16 bytes are swizzled, so that the rows
// of an operand lie in different banks.
#pragma once

#include "attention_work.cuh"
#include "ptx.cuh"

namespace tinyserve::cuda {

template <typename Shape>
class KeyRing {
 public:
  // Where this thread's key of a tile lies; threads from Shape::kKeys on have none.
  struct Place {
    int page = -1, offset = 0;  // -1: nowhere
  };

  __device__ KeyRing(const AttentionJob& job, char* memory)
      : job_(job), stages_(memory + Shape::kQueryBytes), rows_(reinterpret_cast<int*>(memory + Shape::kRowsAt)) {}

  // Asks the page table for the keys of the walk's tile, if there is one, and goes on to the next.
  __device__ Place ask(AttentionWalk<Shape>& walk) const {
    Place place;
    if (walk.left == 0) return place;
    const int key = walk.tile * Shape::kKeys + int(threadIdx.x), size = int(job_.a.block_size);
    const int end = Shape::kRotates ? walk.end_key - 1 : walk.end_key;
    if (threadIdx.x < Shape::kKeys && key >= walk.first_key && key < end) {
      const int block = key / size;
      place.page = job_.a.block_tables[walk.request * job_.a.max_blocks + block];
      place.offset = walk.kv_head * size + key - block * size;
    }
    walk.advance(job_);
    return place;
  }

  // Writes the answer down for load() of the same stage, which a barrier must separate from this.
  __device__ void note(int stage, Place place) const {
    if (threadIdx.x >= Shape::kKeys) return;
    const int of_page = int(job_.a.num_kv_heads * job_.a.block_size);
    rows_[stage * Shape::kKeys + threadIdx.x] = place.page < 0 ? -1 : place.page * of_page + place.offset;
  }

  // Starts the copies of a tile.
  __device__ void load(int stage) const {
    constexpr int kAtOnce = Shape::kThreads / Shape::kChunks;  // keys
    static_assert(Shape::kThreads % Shape::kChunks == 0 && Shape::kKeys % kAtOnce == 0);
    const int* rows = rows_ + stage * Shape::kKeys;
    const int chunk = threadIdx.x % Shape::kChunks, row_bytes = int(job_.a.head_dim * sizeof(typename Shape::Cache));
    const bool inside = chunk * 16 < row_bytes;
#pragma unroll
    for (int i = 0; i < Shape::kKeys / kAtOnce; ++i) {
      const int key = i * kAtOnce + threadIdx.x / Shape::kChunks, row = rows[key];
      const bool exists = inside && row >= 0;
      const int64_t from = exists ? int64_t(row) * row_bytes + chunk * 16 : 0;
      copy(key_at<Shape>(keys(stage), key, chunk), static_cast<const char*>(job_.a.k_cache) + from, exists ? 16 : 0);
      copy(key_at<Shape>(values(stage), key, chunk), static_cast<const char*>(job_.a.v_cache) + from, exists ? 16 : 0);
    }
    if constexpr (Shape::kHasScales) {
      if (threadIdx.x >= Shape::kKeys) return;
      const int row = rows[threadIdx.x], bytes = row >= 0 ? 4 : 0;
      cp_async_4(scales(stage) + threadIdx.x, job_.a.k_scales + max(row, 0), bytes);
      cp_async_4(scales(stage) + Shape::kKeys + threadIdx.x, job_.a.v_scales + max(row, 0), bytes);
    }
  }

  __device__ char* keys(int stage) const { return stages_ + stage * Shape::kStageBytes; }
  __device__ char* values(int stage) const { return keys(stage) + Shape::kTileBytes; }
  __device__ float* scales(int stage) const {  // of keys, then of values
    return reinterpret_cast<float*>(keys(stage) + 2 * Shape::kTileBytes);
  }

 private:
  // A decoded token's keys are read once, those of a prompt by every row tile.
  __device__ static void copy(char* to, const char* from, int bytes) {
    if constexpr (Shape::kDecodes) {
      cp_async_16_streaming(to, from, bytes);
    } else {
      cp_async_16(to, from, bytes);
    }
  }

  const AttentionJob& job_;
  char* stages_;
  int* rows_;  // [kStages, kKeys] rows of the cache, [blocks, Hkv, S]; -1: none
};

}  // namespace tinyserve::cuda
