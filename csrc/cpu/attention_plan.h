// attention_plan.h — how paged_attention cuts a batch into tasks. No choice made here changes a result: see there.
#pragma once

#include "panels.h"

#include <algorithm>
#include <vector>

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

constexpr int64_t kTile = 256;              // keys
constexpr int64_t kMaxRowElements = 12288;  // rows of a task times D: they stay in the second-level cache with a tile
constexpr int64_t kMaxSplitRows = 64;       // with more rows there are tasks enough without cutting the context

// Queries [first_query, end_query) of a request over the keys in tiles [first_tile, end_tile).
struct Task {
  int64_t request, kv_head, first_query, end_query, first_tile, end_tile;
  int64_t partials;  // where its first tile's partial results go; -1: this task covers all tiles and writes the output

  int64_t cost() const { return (end_query - first_query) * (end_tile - first_tile); }
};

struct Plan {
  std::vector<Task> tasks;   // longest first
  std::vector<Task> merges;  // what was cut, with all of its tiles
  int64_t partial_floats = 0;
  int64_t max_rows = 0;  // of a task
};

struct Sizes {
  int64_t group, dim, padded_dim;  // query heads per key head; D; D rounded up to whole panels

  explicit Sizes(const PagedAttentionArgs& a)
      : group(a.num_heads / a.num_kv_heads), dim(a.head_dim), padded_dim((a.head_dim + kPanel - 1) / kPanel * kPanel) {}
  // of a query or a key, in operands
  template <typename Operand>
  int64_t key_depth() const {
    return (dim + kDepth<Operand> - 1) / kDepth<Operand>;
  }
  // one row of one tile: the weighted values, then maximum and sum
  int64_t partial_floats() const { return padded_dim + 2; }
  int64_t queries_per_task() const {
    return std::max<int64_t>(1, std::clamp<int64_t>(kMaxRowElements / dim, 48, 192) / group);
  }
};

inline int64_t tiles_before(int64_t key) { return (key + kTile - 1) / kTile; }

// The first key that the query at `position` sees.
inline int64_t first_seen(const PagedAttentionArgs& a, int64_t position) {
  return a.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - a.window);
}

inline Plan make_plan(const PagedAttentionArgs& a) {
  const Sizes sizes(a);
  int64_t total_tiles = 0;
  for (int64_t b = 0; b < a.num_requests; ++b) total_tiles += tiles_before(a.context_lens[b]) * a.num_kv_heads;
  const int64_t span =
      std::clamp<int64_t>(total_tiles / 64, 1, 8);  // few tiles: one to a task, so that no thread waits
  Plan plan;
  for (int64_t b = 0; b < a.num_requests; ++b) {
    const int64_t query_len = a.query_starts[b + 1] - a.query_starts[b], per_task = sizes.queries_per_task();
    for (int64_t first = 0; first < query_len; first += per_task) {
      const int64_t end = std::min(query_len, first + per_task), rows = (end - first) * sizes.group;
      plan.max_rows = std::max(plan.max_rows, rows);
      const int64_t cached = a.context_lens[b] - query_len, tiles = tiles_before(cached + end);
      const int64_t first_tile = first_seen(a, cached + first) / kTile;
      const bool cut = rows <= kMaxSplitRows && tiles - first_tile > span;
      for (int64_t head = 0; head < a.num_kv_heads; ++head) {
        const Task whole{b, head, first, end, first_tile, tiles, cut ? plan.partial_floats : -1};
        if (!cut) {
          plan.tasks.push_back(whole);
          continue;
        }
        plan.merges.push_back(whole);
        for (int64_t tile = first_tile; tile < tiles; tile += span) {
          plan.tasks.push_back({b, head, first, end, tile, std::min(tiles, tile + span), plan.partial_floats});
          plan.partial_floats += (plan.tasks.back().end_tile - tile) * rows * sizes.partial_floats();
        }
      }
    }
  }
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(),
                   [](const Task& x, const Task& y) { return x.cost() > y.cost(); });
  return plan;
}

}  // namespace
}  // namespace tinyserve::cpu::TINYSERVE_ISA
