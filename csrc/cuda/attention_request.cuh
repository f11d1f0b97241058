// attention_request.cuh — what a launch of paged_attention is given, and of each request the rows, the keys that they
// see and how much work that makes. It knows lengths only, neither caches nor arithmetic.
#pragma once

#include "../kernels.h"
#include "attention_shape.cuh"

#include <type_traits>

namespace tinyserve::cuda {

struct AttentionJob {
  PagedAttentionArgs a;
  int group;                     // query heads to a key head
  int window;                    // keys that a query sees, its own included; 0: all
  int min_queries, max_queries;  // of the requests that this launch takes; the first at least 1
  int arrivals_row;
};

// Where queries and the token's own key come unrotated.
struct RotatingJob : AttentionJob {
  RopeKvWriteArgs rope;
};
template <typename Shape>
using JobOf = std::conditional_t<Shape::kRotates, RotatingJob, AttentionJob>;

// sum over i < n of floor((a * i + b) / m), for n, a, b >= 0 and m > 0
__host__ __device__ inline int floor_sum(int n, int m, int a, int b) {
  int sum = 0;
  while (true) {
    if (a >= m) {
      sum += n * (n - 1) / 2 * (a / m);
      a %= m;
    }
    if (b >= m) {
      sum += n * (b / m);
      b %= m;
    }
    const int last = a * n + b;
    if (last < m) return sum;
    n = last / m;
    b = last % m;
    const int old = m;
    m = a;
    a = old;
  }
}

// The rows of one request, and the keys that they see. No rows where the launch does not take it.
template <typename Shape>
struct RequestRows {
  int first_token = 0, queries = 0;
  int cached = 0;  // keys before the first query's own

  RequestRows() = default;
  __device__ RequestRows(const AttentionJob& job, int request) {
    const int first = job.a.query_starts[request], count = job.a.query_starts[request + 1] - first;
    const int context = job.a.context_lens[request];
    if (count < job.min_queries || count > job.max_queries || count > context) return;
    first_token = first;
    queries = count;
    cached = context - count;
  }

  __device__ int count(const AttentionJob& job) const { return queries * job.group; }
  __device__ int row_tiles(const AttentionJob& job) const { return (count(job) + Shape::kRows - 1) / Shape::kRows; }

  // The keys that the rows of a tile see, and the tiles of keys that hold them.
  __device__ int first_key(const AttentionJob& job, int row_tile) const {
    return job.window == 0 ? 0 : max(0, cached + row_tile * Shape::kRows / job.group + 1 - job.window);
  }
  __device__ int end_key(const AttentionJob& job, int row_tile) const {
    return cached + min(queries, ((row_tile + 1) * Shape::kRows + job.group - 1) / job.group);
  }
  __device__ int first_tile(const AttentionJob& job, int row_tile) const {
    return first_key(job, row_tile) / Shape::kKeys;
  }
  __device__ int end_tile(const AttentionJob& job, int row_tile) const {
    return (end_key(job, row_tile) + Shape::kKeys - 1) / Shape::kKeys;
  }

  // Units of the row tiles before this one, for one key head. The sum of first_tile and end_tile in closed form; only
  // the last row tile, which is not among them, may be cut short by the queries' end.
  __device__ int units_before(const AttentionJob& job, int row_tile) const {
    if (row_tile == 0) return 0;
    const int step = Shape::kKeys * job.group;
    int units = floor_sum(row_tile, step, Shape::kRows, cached * job.group + Shape::kRows + step - 1);
    if (job.window == 0) return units;
    const int first = max(cached + 1 - job.window, -queries) * job.group;
    const int whole = first < 0 ? min(row_tile, (-first + Shape::kRows - 1) / Shape::kRows) : 0;  // that see key 0
    return units - floor_sum(row_tile - whole, step, Shape::kRows, first + whole * Shape::kRows);
  }
  __device__ int units(const AttentionJob& job) const {
    if (queries == 0) return 0;
    const int last = row_tiles(job) - 1;
    return units_before(job, last) + end_tile(job, last) - first_tile(job, last);
  }
};

}  // namespace tinyserve::cuda
