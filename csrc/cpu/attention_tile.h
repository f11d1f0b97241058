// attention_tile.h — the keys and values of one tile of a request's context, from the pages of the cache to panels.
//
// Keys come as vectors of the same channel of consecutive keys, as the cache of the engine holds them (KeyStrides in
// kernels.h); from one in which a key's channels lie together they are gathered, slowly.
//
// Pages lie anywhere, so the processor cannot guess the next one: values are asked for while keys are read, the keys of
// the next tile, be it another request's, while values are.
#pragma once

#include "attention_plan.h"
#include "vec_math.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// Where the keys of one tile of a request's context lie.
struct Place {
  const int32_t* table = nullptr;  // the request's blocks
  int64_t kv_head = 0, first_key = 0;
  int64_t count = 0;  // of keys; 0: there is no such tile
};

// Sums of values, weighted for each row: out[r][d] = sum over keys i, in their order, of weight[r][i] * value[i][d].
template <typename Operand>
struct WeightedValues {
  const Operand* weights;  // [rows, depth], weights_stride apart
  float* out;              // [rows, padded_dim], out_stride apart
  int64_t weights_stride, out_stride;
  int64_t depth;  // in operands
};

// Activations T over a cache of T or of int8.
template <typename T, typename Cache>
class Tile {
 public:
  using Operand = OperandOf<T, Cache>;
  static constexpr bool kHasScales = !std::is_same_v<T, Cache>;

  Tile(const PagedAttentionArgs& args, const Sizes& sizes)
      : a_(args),
        sizes_(sizes),
        by_channel_(args.key_strides.key == 1 && args.block_size % kPanel == 0),
        keys_(static_cast<const Cache*>(a_.k_cache)),
        values_(static_cast<const Cache*>(a_.v_cache)) {}

  // Prepares the first tile.
  void start(const Place& first) {
    locate(first);
    for (int64_t j = 0; j < next_count_; ++j) prefetch_next_key(j);
  }

  // Goes on to the tile that start() or the call before has located; `following` is the one after it.
  void next(const Place& following) {
    memcpy(rows_, next_rows_, sizeof rows_);
    memcpy(key_at_, next_key_at_, sizeof key_at_);
    count_ = next_count_;
    if constexpr (kHasScales) {
      int64_t j = 0;
      for (; a_.block_size % kPanel == 0 && j + kPanel <= count_; j += kPanel) {  // side by side in their block
        memcpy(key_scales_ + j, a_.k_scales + rows_[j], kPanel * sizeof(float));
        memcpy(value_scales_ + j, a_.v_scales + rows_[j], kPanel * sizeof(float));
      }
      for (; j < count_; ++j) {
        key_scales_[j] = a_.k_scales[rows_[j]];
        value_scales_[j] = a_.v_scales[rows_[j]];
      }
      for (int64_t j = count_; j % kPanel != 0; ++j) key_scales_[j] = value_scales_[j] = 0.f;
    }
    locate(following);
  }

  // Of a tile with scales: what its keys and values are to be multiplied with, [kTile], 0 past the last key.
  const float* key_scales() const { return key_scales_; }
  const float* value_scales() const { return value_scales_; }

  int64_t num_panels() const { return (count_ + kPanel - 1) / kPanel; }

  // Panels of kPanel keys: [num_panels, key_depth, kPanel]. What a last panel holds past the keys is to be masked.
  void copy_keys(Operand* panels) const {
    const int64_t depth = sizes_.key_depth<Operand>();
    for (int64_t j = 0; j < count_; j += kPanel) {
      for (int64_t i = j; i < std::min(count_, j + kPanel); ++i) prefetch(values_ + rows_[i] * sizes_.dim);
      for (int64_t i = 0; i < depth; ++i) {
        OperandVec<Operand> parts[kPanelVecs];
        load_keys(j, i, parts);
        memcpy(panels + j * depth + i * kPanel, parts, sizeof parts);
      }
    }
  }

  // For few rows: the same products as with panels, bit for bit, straight from the cache. rows [num_rows, key_depth]
  // are `rows_stride` apart, products [num_rows, num_panels * kPanel] kTile.
  void score(const Operand* rows, int64_t rows_stride, int64_t num_rows, int64_t num_panels, float* products) const {
    switch (num_rows) {
      case 1:
        return score_rows<1>(rows, rows_stride, num_panels, products);
      case 2:
        return score_rows<2>(rows, rows_stride, num_panels, products);
      case 3:
        return score_rows<3>(rows, rows_stride, num_panels, products);
      case 4:
        return score_rows<4>(rows, rows_stride, num_panels, products);
      case 5:
        return score_rows<5>(rows, rows_stride, num_panels, products);
      default:
        return score_rows<kPanelRows>(rows, rows_stride, num_panels, products);
    }
  }

  // Panels of kPanel channels: [padded_dim / kPanel, kTile / kDepth, kPanel].
  void copy_values(Operand* panels) const {
    constexpr int64_t kStep = kDepth<Operand>;
    for (int64_t j = 0; j < count_; j += kStep) {
      for (int64_t i = j; i < j + kStep; ++i) prefetch_next_key(i);
      for (int64_t d = 0; d < sizes_.dim; d += kPanel) {
        OperandVec<Operand> parts[kPanelVecs];
        load_values(j, d, parts);
        memcpy(panels + d * (kTile / kStep) + j / kStep * kPanel, parts, sizeof parts);
      }
    }
  }

  // For few rows: the same sums as with panels, bit for bit, straight from the cache.
  void weigh(const WeightedValues<Operand>& w, int64_t num_rows) const {
    switch (num_rows) {
      case 1:
        return weigh_rows<1>(w);
      case 2:
        return weigh_rows<2>(w);
      case 3:
        return weigh_rows<3>(w);
      case 4:
        return weigh_rows<4>(w);
      case 5:
        return weigh_rows<5>(w);
      default:
        return weigh_rows<kPanelRows>(w);
    }
  }

 private:
  template <int Rows>
  void score_rows(const Operand* rows, int64_t rows_stride, int64_t num_panels, float* products) const {
    constexpr int kPanels = panels_at_once(Rows);
    int64_t panel = 0;
    for (; panel + kPanels <= num_panels; panel += kPanels)
      score_panels<Rows, kPanels>(rows, rows_stride, panel * kPanel, products);
    for (; panel < num_panels; ++panel) score_panels<Rows, 1>(rows, rows_stride, panel * kPanel, products);
  }

  // Of keys [first, first + Panels * kPanel). Meanwhile the values of these keys are asked for.
  template <int Rows, int Panels>
  void score_panels(const Operand* rows, int64_t rows_stride, int64_t first, float* products) const {
    constexpr int kVecs = Panels * kPanelVecs;
    const int64_t depth = sizes_.key_depth<Operand>(), keys = std::min<int64_t>(Panels * kPanel, count_ - first);
    SumVec<Operand> sums[Rows][kVecs];
#pragma GCC unroll 8  // as in panels.h
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = SumVec<Operand>{};
    int64_t asked = 0;
    for (int64_t i = 0; i < depth; ++i) {
      for (; asked * depth < (i + 1) * keys; ++asked) prefetch(values_ + rows_[first + asked] * sizes_.dim);
      OperandVec<Operand> parts[kVecs];
      for (int panel = 0; panel < Panels; ++panel) load_keys(first + panel * kPanel, i, parts + panel * kPanelVecs);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < kVecs; ++v) sums[r][v] = multiply_add(sums[r][v], rows[r * rows_stride + i], parts[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store(products + r * kTile + first + v * kWidth, as_floats(sums[r][v]));
  }

  template <int Rows>
  void weigh_rows(const WeightedValues<Operand>& w) const {
    constexpr int kPanels = panels_at_once(Rows);
    int64_t d = 0;
    for (; d + kPanels * kPanel <= sizes_.dim; d += kPanels * kPanel) weigh_channels<Rows, kPanels>(w, d);
    for (; d < sizes_.dim; d += kPanel) weigh_channels<Rows, 1>(w, d);
  }

  template <int Rows, int Panels>
  void weigh_channels(const WeightedValues<Operand>& w, int64_t first) const {
    constexpr int kVecs = Panels * kPanelVecs;
    constexpr int64_t kStep = kDepth<Operand>;
    SumVec<Operand> sums[Rows][kVecs];
#pragma GCC unroll 8  // as in panels.h
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = SumVec<Operand>{};
    for (int64_t i = 0; i < w.depth; ++i) {
      if (first == 0) {
        for (int64_t j = i * kStep; j < (i + 1) * kStep; ++j) prefetch_next_key(j);
      }
      OperandVec<Operand> parts[kVecs];
      for (int panel = 0; panel < Panels; ++panel)
        load_values(i * kStep, first + panel * kPanel, parts + panel * kPanelVecs);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < kVecs; ++v)
          sums[r][v] = multiply_add(sums[r][v], w.weights[r * w.weights_stride + i], parts[v]);
    }
    for (int64_t j = w.depth * kStep; first == 0 && j < next_count_; ++j) prefetch_next_key(j);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store(w.out + r * w.out_stride + first + v * kWidth, as_floats(sums[r][v]));
  }

  // Operand i of kPanel keys from key j on, j a multiple of kPanel: channel i, or as pairs channels 2i and 2i + 1.
  void load_keys(int64_t j, int64_t i, OperandVec<Operand>* parts) const {
    Cache gathered[kDepth<Operand>][kPanel];
    if constexpr (kDepth<Operand> == 1) {
      const Cache* from = channel(j, i, gathered[0]);
      for (int v = 0; v < kPanelVecs; ++v) parts[v] = load(from + v * kWidth);
    } else {
      interleave(load_pairs(channel(j, 2 * i, gathered[0])), load_pairs(channel(j, 2 * i + 1, gathered[1])), parts[0],
                 parts[1]);
    }
  }

  // One channel of kPanel keys, where it lies or put together in `gathered`.
  const Cache* channel(int64_t j, int64_t d, Cache* gathered) const {
    const Cache* from = keys_ + d * a_.key_strides.channel;
    if (by_channel_) return from + key_at_[j];
    for (int i = 0; i < kPanel; ++i) gathered[i] = from[key_at_[j + i]];
    return gathered;
  }

  // Channels [d, d + kPanel) of the value of key j, or of the values of keys j and j + 1; zeros past their end.
  void load_values(int64_t j, int64_t d, OperandVec<Operand>* parts) const {
    if constexpr (kDepth<Operand> == 1) {
      for (int v = 0; v < kPanelVecs; ++v, d += kWidth)
        parts[v] = d < sizes_.dim ? load_part(values_ + rows_[j] * sizes_.dim + d, sizes_.dim - d) : Vec{};
    } else {
      const Cache *even = values_ + rows_[j] * sizes_.dim, *odd = values_ + rows_[j + 1] * sizes_.dim;
      interleave(load_pairs_part(even, d), load_pairs_part(odd, d), parts[0], parts[1]);
    }
  }

  // 2 * kWidth elements of a key or a value from channel d on; zeros past its end.
  UintVec load_pairs_part(const Cache* row, int64_t d) const {
    if (d + 2 * kWidth <= sizes_.dim) return load_pairs(row + d);
    Cache padded[2 * kWidth] = {};
    memcpy(padded, row + d, (sizes_.dim - d) * sizeof(Cache));
    return load_pairs(padded);
  }

  // Up to a whole panel of keys, the last one again.
  void locate(const Place& place) {
    next_count_ = place.count;
    int64_t block = place.first_key / a_.block_size, offset = place.first_key % a_.block_size;
    for (int64_t j = 0; j < next_count_; ++block, offset = 0) {
      const int64_t first = (place.table[block] * a_.num_kv_heads + place.kv_head) * a_.block_size;
      const int64_t row = first + offset, key_at = first * sizes_.dim + offset * a_.key_strides.key;
      const int64_t count = std::min(a_.block_size - offset, next_count_ - j);
      for (int64_t i = 0; i < count; ++i) {
        next_rows_[j + i] = row + i;
        next_key_at_[j + i] = key_at + i * a_.key_strides.key;
      }
      j += count;
    }
    for (int64_t j = next_count_; j % kPanel != 0; ++j) {
      next_rows_[j] = next_rows_[next_count_ - 1];
      next_key_at_[j] = next_key_at_[next_count_ - 1];
    }
  }

  void prefetch_next_key(int64_t j) const {
    if (j < next_count_) prefetch(keys_ + next_rows_[j] * sizes_.dim);  // by channel, the page's j-th part
  }

  // one value, [D], or as much of the page of a key
  void prefetch(const Cache* row) const {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (int64_t i = 0; i < sizes_.dim * int64_t(sizeof(Cache)); i += 64) __builtin_prefetch(bytes + i);
  }

  const PagedAttentionArgs& a_;
  const Sizes& sizes_;
  const bool by_channel_;
  const Cache *keys_, *values_;
  int64_t count_ = 0, next_count_ = 0;          // keys of this tile and of the next
  int64_t rows_[kTile], next_rows_[kTile];      // where they lie, in rows of D elements
  int64_t key_at_[kTile], next_key_at_[kTile];  // where the first channel of their keys lies, in elements
  float key_scales_[kHasScales ? kTile : 1], value_scales_[kHasScales ? kTile : 1];
};

}  // namespace
}  // namespace tinyserve::cpu::TINYSERVE_ISA
