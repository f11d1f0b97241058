// attention_tile.h — the keys and values of one tile of a request's context, from the pages of the cache to fp32.
//
// Pages lie anywhere, so the processor cannot guess the next one: values are asked for while keys are read, the next
// tile's keys while values are.
#pragma once

#include "attention_plan.h"
#include "vec_math.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// Sums of values, weighted for each row: out[r][d] = sum over keys i < depth, in their order, of weights[r][i] *
// value[i][d].
struct WeightedValues {
  const float* weights;  // [rows, depth], weights_stride apart
  float* out;            // [rows, padded_dim], out_stride apart
  int64_t weights_stride, out_stride;
  int64_t depth;
};

template <typename T>
class Tile {
 public:
  Tile(const PagedAttentionArgs& args, const Sizes& sizes)
      : a_(args), sizes_(sizes), keys_(static_cast<const T*>(a_.k_cache)), values_(static_cast<const T*>(a_.v_cache)) {}

  // Prepares the first of the task's tiles; `seen` is how many keys of the request matter to it.
  void start(const Task& task, int64_t seen) {
    table_ = a_.block_tables + task.request * a_.max_blocks;
    kv_head_ = task.kv_head;
    seen_ = std::min(seen, task.end_tile * kTile);
    locate(task.first_tile * kTile);
    for (int64_t j = 0; j < next_count_; ++j) prefetch(keys_ + next_rows_[j]);
  }

  // Goes on to the tile that starts with this key; start() or the call before has located it.
  void next(int64_t first_key) {
    memcpy(rows_, next_rows_, sizeof rows_);
    count_ = next_count_;
    locate(first_key + kTile);
  }

  int64_t num_panels() const { return (count_ + kPanel - 1) / kPanel; }

  // Panels of kPanel keys: [num_panels, D, kPanel]. What a last panel holds past the keys is to be masked.
  void turn_keys(int64_t first_panel, int64_t num_panels, float* panels) const {
    const int64_t first = first_panel * kPanel, end = std::min(count_, first + num_panels * kPanel);
    for (int64_t j = first; j < end; j += kWidth) {
      float* panel = panels + (j - first) / kPanel * kPanel * sizes_.dim + j % kPanel;
      for (int64_t i = j; i < std::min(end, j + kWidth); ++i) prefetch(values_ + rows_[i]);
      for (int64_t d = 0; d < sizes_.dim; d += kWidth) {
        Vec part[kWidth];
        for (int i = 0; i < kWidth; ++i) part[i] = load_part(keys_ + rows_[j + i] + d, sizes_.dim - d);
        transpose(part);
        const int64_t channels = std::min<int64_t>(kWidth, sizes_.dim - d);
        for (int64_t i = 0; i < channels; ++i) store(panel + (d + i) * kPanel, part[i]);
      }
    }
  }

  // Panels of kPanel channels: [padded_dim / kPanel, kTile, kPanel].
  void copy_values(float* panels) const {
    for (int64_t j = 0; j < count_; ++j) {
      prefetch_next_key(j);
      for (int64_t d = 0; d < sizes_.padded_dim; d += kWidth) {
        const Vec part = d < sizes_.dim ? load_part(values_ + rows_[j] + d, sizes_.dim - d) : Vec{};
        store(panels + d / kPanel * kPanel * kTile + j * kPanel + d % kPanel, part);
      }
    }
  }

  // For few rows: the same sums as with panels, bit for bit, straight from the cache.
  void weigh(const WeightedValues& w, int64_t num_rows) const {
    switch (num_rows) {
      case 1:
        return weigh_rows<1, 8>(w);
      case 2:
        return weigh_rows<2, 4>(w);
      case 3:
        return weigh_rows<3, 4>(w);
      case 4:
        return weigh_rows<4, 2>(w);
      case 5:
        return weigh_rows<5, 2>(w);
      default:
        return weigh_rows<kPanelRows, 2>(w);
    }
  }

 private:
  template <int Rows, int Vecs>
  void weigh_rows(const WeightedValues& w) const {
    for (int64_t j = 0; j < w.depth; ++j) prefetch_next_key(j);
    int64_t d = 0;
    for (; d + Vecs * kWidth <= sizes_.dim; d += Vecs * kWidth) weigh_channels<Rows, Vecs>(w, d);
    for (; d < sizes_.dim; d += kWidth) weigh_channels<Rows, 1>(w, d);
  }

  template <int Rows, int Vecs>
  void weigh_channels(const WeightedValues& w, int64_t first) const {
    Vec sums[Rows][Vecs];
#pragma GCC unroll 8  // as in panels.h
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vecs; ++v) sums[r][v] = Vec{};
    for (int64_t i = 0; i < w.depth; ++i) {
      const T* value = values_ + rows_[i] + first;
      Vec weights[Rows];
      for (int r = 0; r < Rows; ++r) weights[r] = broadcast(w.weights[r * w.weights_stride + i]);
      for (int v = 0; v < Vecs; ++v) {
        const Vec part = Vecs == 1 ? load_part(value, sizes_.dim - first) : load(value + v * kWidth);
        for (int r = 0; r < Rows; ++r) sums[r][v] += weights[r] * part;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vecs; ++v) store(w.out + r * w.out_stride + first + v * kWidth, sums[r][v]);
  }

  // Where the keys and values of the tile that starts with key `first` lie. Up to a whole vector, the last one again.
  void locate(int64_t first) {
    next_count_ = std::clamp<int64_t>(seen_ - first, 0, kTile);
    int64_t block = first / a_.block_size, offset = first % a_.block_size;
    for (int64_t j = 0; j < next_count_; ++j) {
      next_rows_[j] = ((table_[block] * a_.num_kv_heads + kv_head_) * a_.block_size + offset) * sizes_.dim;
      if (++offset == a_.block_size) ++block, offset = 0;
    }
    for (int64_t j = next_count_; j % kWidth != 0; ++j) next_rows_[j] = next_rows_[next_count_ - 1];
  }

  void prefetch_next_key(int64_t j) const {
    if (j < next_count_) prefetch(keys_ + next_rows_[j]);
  }

  // one key or value, [D]
  void prefetch(const T* row) const {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (int64_t i = 0; i < sizes_.dim * int64_t(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
  }

  const PagedAttentionArgs& a_;
  const Sizes& sizes_;
  const T *keys_, *values_;
  const int32_t* table_ = nullptr;
  int64_t kv_head_ = 0, seen_ = 0;
  int64_t count_ = 0, next_count_ = 0;      // keys of this tile and of the next
  int64_t rows_[kTile], next_rows_[kTile];  // where they lie, in elements
};

}  // namespace
}  // namespace tinyserve::cpu::TINYSERVE_ISA
