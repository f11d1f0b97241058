// attention_work.cuh — which row tiles and which keys a CTA of paged_attention takes: found by the CTA itself from the
// lengths in the GPU's memory, so that a captured graph goes on with whatever lengths it finds.
//
// The unit of work is a row tile by a tile of keys; those that no query of the row tile sees do not exist. All units of
// a launch, ordered by request, key head, row tile and key, are cut into shares of one size, one for each CTA: every
// mix of lengths fills the GPU. Which units a request has: attention_request.cuh.
#pragma once

#include "attention_request.cuh"

namespace tinyserve::cuda {

// A CTA's way through its share, unit by unit.
template <typename Shape>
struct AttentionWalk {
  RequestRows<Shape> rows;
  int request, kv_head, row_tile;
  int first_key, end_key;  // that the row tile sees
  int tile;                // of keys
  int left;                // units of the share, this one included

  __device__ int first_tile() const { return first_key / Shape::kKeys; }
  __device__ int end_tile() const { return (end_key + Shape::kKeys - 1) / Shape::kKeys; }
  __device__ bool ends_row_tile() const { return (tile + 1) * Shape::kKeys >= end_key; }
  // The row tile's first row among those of its request, and how many it has.
  __device__ int first_row() const { return row_tile * Shape::kRows; }
  __device__ int num_rows(const AttentionJob& job) const { return min(Shape::kRows, rows.count(job) - first_row()); }

  __device__ void enter(const AttentionJob& job, int new_row_tile) {
    row_tile = new_row_tile;
    first_key = rows.first_key(job, row_tile);
    end_key = rows.end_key(job, row_tile);
    tile = first_tile();
  }

  __device__ void advance(const AttentionJob& job) {
    if (--left == 0) return;
    if (!ends_row_tile()) {
      ++tile;
      return;
    }
    int next = row_tile + 1;
    if (next == rows.row_tiles(job)) {
      next = 0;
      if (++kv_head == job.a.num_kv_heads) {
        kv_head = 0;
        do {
          rows = RequestRows<Shape>(job, ++request);
        } while (rows.queries == 0);
      }
    }
    enter(job, next);
  }
};

// What all threads of a CTA know of its share, in shared memory: registers are for the products.
template <typename Shape>
struct AttentionShare {
  int size;   // of all shares but the last ones, in units
  int units;  // of this one; 0: none
  AttentionWalk<Shape> begin;
  AttentionWalk<Shape> ahead[2];  // where the copies are: the next, and by turns the one after it

  // The walk's unit among all.
  __device__ int64_t unit(const AttentionWalk<Shape>& walk) const {
    return int64_t(blockIdx.x) * size + units - walk.left;
  }

  // Finds the share; called by all threads. `scratch` is shared memory that is free before and, after a barrier,
  // afterwards.
  __device__ void find(const AttentionJob& job, char* scratch) {
    int64_t* totals = reinterpret_cast<int64_t*>(scratch);  // of each warp's requests
    const int requests = int(job.a.num_requests), lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int each = (requests + Shape::kThreads - 1) / Shape::kThreads;
    const int mine = min(requests, int(threadIdx.x) * each), end = min(requests, mine + each);
    const auto units_of = [&](int request) {
      return int64_t(RequestRows<Shape>(job, request).units(job)) * job.a.num_kv_heads;
    };
    int64_t own = 0;
    for (int request = mine; request < end; ++request) own += units_of(request);
    int64_t upto = own;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int64_t before = __shfl_up_sync(0xffffffff, upto, step);
      if (lane >= step) upto += before;
    }
    if (lane == kWarpSize - 1) totals[warp] = upto;
    __syncthreads();
    int64_t total = 0;
    for (int w = 0; w < Shape::kWarps; ++w) {
      if (w == warp) upto += total;
      total += totals[w];
    }
    const int64_t share = max(int64_t(Shape::kMinShare), (total + gridDim.x - 1) / gridDim.x);
    const int64_t first = blockIdx.x * share, left = max(int64_t(0), min(share, total - first));
    if (threadIdx.x == 0) {
      size = int(share);
      units = int(left);
    }
    int64_t before = upto - own;
    if (left > 0 && before <= first && first < upto) {  // one thread
      int request = mine;
      for (int64_t next; first >= (next = before + units_of(request)); before = next) ++request;
      enter(job, request, int(first - before), int(left));
    }
    __syncthreads();
  }

 private:
  // Begins `offset` units into a request.
  __device__ void enter(const AttentionJob& job, int request, int offset, int left) {
    AttentionWalk<Shape> walk;
    walk.rows = RequestRows<Shape>(job, request);
    walk.request = request;
    walk.left = left;
    const int of_head = walk.rows.units(job), unit = offset % of_head;
    walk.kv_head = offset / of_head;
    int low = 0;  // the last row tile that begins no later
    for (int high = walk.rows.row_tiles(job) - 1; low < high;) {
      const int middle = (low + high + 1) / 2;
      if (walk.rows.units_before(job, middle) <= unit) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    walk.enter(job, low);
    walk.tile += unit - walk.rows.units_before(job, low);
    begin = walk;
  }
};

}  // namespace tinyserve::cuda
