// paged_attention.cpp — causal attention over the paged cache, for prefill and decode alike.
//
// Keys are taken in tiles of kTile, tile boundaries being those of the request's own positions. A tile gives each query
// row a partial result (maximum, sum, weighted values), and partial results are merged from the first tile to the last.
// Neither the rows computed together nor the thread that does so change a row's sums, so a token's output depends on
// nothing but its own request: not on its neighbours, on chunks of prefill or on the number of threads.
//
// A row is one query of one head. All heads that share a key head are rows of one task, so keys and values are read
// and, for many rows, made into panels once for all of them. Long contexts with few rows are cut into tasks along the
// context.
#include "attention_plan.h"
#include "attention_tile.h"
#include "panels.h"
#include "vec_math.h"

#include <algorithm>
#include <memory>
#include <new>

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

constexpr int64_t kMinTaskOperations = 1 << 17;  // multiplications worth waking a thread for

// Elements at addresses that vectors like, not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(operator new(size * sizeof(T), kAlignment))) {}
  ~Buffer() { operator delete(data_, kAlignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

// The running result of one row: sum over keys of 2^(score - max) * value, and of 2^(score - max).
struct Running {
  float max = -__builtin_inff();
  float sum = 0.f;

  // Adds a tile's partial result. A tile of which the row sees nothing has the sum 0 and changes no bit.
  void add(float* values, const float* tile_values, float tile_max, float tile_sum, int64_t padded_dim) {
    if (tile_sum == 0.f) return;
    const float new_max = max > tile_max ? max : tile_max;
    const float keep = __builtin_exp2f(max - new_max), take = __builtin_exp2f(tile_max - new_max);
    for (int64_t d = 0; d < padded_dim; d += kWidth)
      store(values + d, load(values + d) * keep + load(tile_values + d) * take);
    sum = sum * keep + tile_sum * take;
    max = new_max;
  }
};

// What one row sees of a tile, in keys of the tile.
struct Sight {
  int64_t first, end;
  int64_t position;  // the query's own
  float slope;       // ALiBi's
};

template <typename T, typename Cache>
class Worker {
  using Operand = OperandOf<T, Cache>;

 public:
  Worker(const PagedAttentionArgs& args, int64_t max_rows, float* partials)
      : a_(args),
        sizes_(args),
        partials_(partials),
        tile_(args, sizes_),
        queries_(max_rows * query_stride()),
        query_steps_(max_rows),
        values_(max_rows * sizes_.padded_dim),
        running_(new Running[max_rows]),
        key_panels_(max_rows > kPanelRows ? kTile * sizes_.padded_dim : 0),
        value_panels_(max_rows > kPanelRows ? kTile * sizes_.padded_dim : 0),
        scores_(kPanelRows * kTile),
        weights_(kPanelRows * kTile / kDepth<Operand>),
        tile_values_(kPanelRows * sizes_.partial_floats()) {}

  // `following` is the task that this worker runs next, if there is one: its first keys are asked for early.
  void run(const Task& task, const Task* following) {
    const int64_t rows = (task.end_query - task.first_query) * sizes_.group;
    const bool whole = task.partials < 0;
    keeps_panels_ = rows > kPanelRows;
    if (!is_ahead_) tile_.start(place(task, task.first_tile));
    is_ahead_ = following != nullptr;
    for (int64_t r = 0; r < rows; ++r) query_steps_[r] = load_query(row_of(task, r), queries_ + r * query_stride());
    if (whole) {
      std::fill_n(static_cast<float*>(values_), rows * sizes_.padded_dim, 0.f);
      std::fill_n(running_.get(), rows, Running{});
    }
    for (int64_t tile = task.first_tile; tile < task.end_tile; ++tile) {
      const int64_t first_key = tile * kTile;
      tile_.next(tile + 1 < task.end_tile ? place(task, tile + 1)
                 : is_ahead_              ? place(*following, following->first_tile)
                                          : Place{});
      if (keeps_panels_) {
        tile_.copy_keys(key_panels_);
        tile_.copy_values(value_panels_);
      }
      for (int64_t r = 0; r < rows; r += kPanelRows) {
        const int64_t count = std::min<int64_t>(kPanelRows, rows - r);
        const int64_t partial = task.partials + ((tile - task.first_tile) * rows + r) * sizes_.partial_floats();
        float* out = whole ? tile_values_ : partials_ + partial;
        attend(task, first_key, r, count, out);
        for (int64_t i = 0; whole && i < count; ++i) {
          const float* row = out + i * sizes_.partial_floats();
          running_[r + i].add(values_ + (r + i) * sizes_.padded_dim, row, row[sizes_.padded_dim],
                              row[sizes_.padded_dim + 1], sizes_.padded_dim);
        }
      }
    }
    for (int64_t r = 0; whole && r < rows; ++r)
      write(row_of(task, r), values_ + r * sizes_.padded_dim, running_[r].sum);
  }

  // Puts together what the tasks of one cut context left.
  void merge(const Task& task) {
    const int64_t rows = (task.end_query - task.first_query) * sizes_.group;
    for (int64_t r = 0; r < rows; ++r) {
      Running running;
      std::fill_n(static_cast<float*>(values_), sizes_.padded_dim, 0.f);
      for (int64_t tile = task.first_tile; tile < task.end_tile; ++tile) {
        const int64_t index = (tile - task.first_tile) * rows + r;
        const float* row = partials_ + task.partials + index * sizes_.partial_floats();
        running.add(values_, row, row[sizes_.padded_dim], row[sizes_.padded_dim + 1], sizes_.padded_dim);
      }
      write(row_of(task, r), values_, running.sum);
    }
  }

 private:
  int64_t query_stride() const { return sizes_.padded_dim / kDepth<Operand>; }

  // The keys of a tile that the task's last query sees.
  Place place(const Task& task, int64_t tile) const {
    const int64_t seen = first_visible(task) + task.end_query - task.first_query - 1, first_key = tile * kTile;
    return {.table = a_.block_tables + task.request * a_.max_blocks,
            .kv_head = task.kv_head,
            .first_key = first_key,
            .count = std::clamp<int64_t>(seen - first_key, 0, kTile)};
  }

  // keys that the task's first query sees
  int64_t first_visible(const Task& task) const {
    const int64_t query_len = a_.query_starts[task.request + 1] - a_.query_starts[task.request];
    return a_.context_lens[task.request] - query_len + task.first_query + 1;
  }

  // where row r of the task lies in q and in y, in heads
  int64_t row_of(const Task& task, int64_t r) const {
    const int64_t token = a_.query_starts[task.request] + task.first_query + r / sizes_.group;
    return token * a_.num_heads + task.kv_head * sizes_.group + r % sizes_.group;
  }

  // Returns what one unit of the operands is worth.
  float load_query(int64_t row, Operand* to) const {
    const T* from = static_cast<const T*>(a_.q) + row * sizes_.dim;
    if constexpr (kHasUnit) {
      return round_to_int16(from, sizes_.dim, reinterpret_cast<int16_t*>(to));
    } else if constexpr (kDepth<Operand> == 1) {
      for (int64_t d = 0; d < sizes_.dim; d += kWidth) store(to + d, load_part(from + d, sizes_.dim - d));
    } else {
      to[sizes_.key_depth<Operand>() - 1] = {};  // of an odd dimension, half of it stays so
      memcpy(to, from, sizes_.dim * sizeof(T));
    }
    return 1.0f;
  }

  void write(int64_t row, const float* values, float sum) const {
    T* to = static_cast<T*>(a_.y) + row * sizes_.dim;
    for (int64_t d = 0; d < sizes_.dim; d += kWidth) store_part(to + d, load(values + d) * (1.f / sum), sizes_.dim - d);
  }

  // The partial results of rows [first_row, first_row + count) for the tile in the panels.
  void attend(const Task& task, int64_t first_key, int64_t first_row, int64_t count, float* out) {
    const int64_t stride = sizes_.partial_floats(), first_limit = first_visible(task);
    Sight sights[kPanelRows];
    int64_t limit = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first_row + i, position = first_limit - 1 + row / sizes_.group;
      const int64_t head = task.kv_head * sizes_.group + row % sizes_.group;
      sights[i] = {.first = std::clamp<int64_t>(first_seen(a_, position) - first_key, 0, kTile),
                   .end = std::clamp<int64_t>(position + 1 - first_key, 0, kTile),
                   .position = position - first_key,
                   .slope = a_.alibi_slopes == nullptr ? 0.f : a_.alibi_slopes[head]};
      limit = std::max(limit, sights[i].end);
    }
    const int64_t num_panels = (limit + kPanel - 1) / kPanel;
    if (keeps_panels_) {
      const int64_t depth = sizes_.key_depth<Operand>();
      multiply<Operand>({.rows = queries_ + first_row * query_stride(),
                         .panels = key_panels_,
                         .out = scores_,
                         .row_stride = query_stride(),
                         .panel_stride = kPanel * depth,
                         .out_stride = kTile,
                         .depth = depth,
                         .num_panels = num_panels},
                        count);
    } else {
      tile_.score(queries_ + first_row * query_stride(), query_stride(), count, num_panels, scores_);
    }
    constexpr int64_t kWeights = kTile / kDepth<Operand>;
    float weight_steps[kPanelRows];
    for (int64_t i = 0; i < count; ++i)
      weight_steps[i] = softmax(scores_ + i * kTile, query_steps_[first_row + i], sights[i], num_panels * kPanel,
                                weights_ + i * kWeights, out + i * stride + sizes_.padded_dim);
    const int64_t depth = (limit + kDepth<Operand> - 1) / kDepth<Operand>;
    if (keeps_panels_) {
      multiply<Operand>({.rows = weights_,
                         .panels = value_panels_,
                         .out = out,
                         .row_stride = kWeights,
                         .panel_stride = kPanel * kWeights,
                         .out_stride = stride,
                         .depth = depth,
                         .num_panels = sizes_.padded_dim / kPanel},
                        count);
    } else {
      tile_.weigh({weights_, out, kWeights, stride, depth}, count);
    }
    if constexpr (kHasUnit) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < sizes_.padded_dim; d += kWidth)
          store(out + i * stride + d, load(out + i * stride + d) * weight_steps[i]);
    }
  }

  // Products [width] of queries in units of `query_step` -> weights 2^(score - max), 0 where nothing is seen; max_sum
  // gets the maximum and the sum. 2^x is cheaper than e^x. Returns what one unit of the weights is worth.
  float softmax(float* scores, float query_step, const Sight& sight, int64_t width, Operand* weights,
                float* max_sum) const {
    for (int64_t j = 0; j < width; j += kWidth) {
      Vec score = load(scores + j) * (a_.scale * kLog2E * query_step);
      if constexpr (Tile<T, Cache>::kHasScales) score *= load(tile_.key_scales() + j);
      store(scores + j, score);
    }
    if (a_.soft_cap > 0.f) cap(scores, width);
    if (a_.alibi_slopes != nullptr) {
      for (int64_t j = 0; j < width; ++j) scores[j] += sight.slope * kLog2E * float(j - sight.position);
    }
    std::fill(scores, scores + std::min(sight.first, width), -__builtin_inff());
    std::fill(scores + sight.end, scores + width, -__builtin_inff());
    Vec most = broadcast(-__builtin_inff());
    for (int64_t j = 0; j < width; j += kWidth) most = select(load(scores + j) > most, load(scores + j), most);
    max_sum[0] = sight.first >= sight.end ? 0.f : max(most);
    Vec total = {};
    for (int64_t j = 0; j < width; j += kWidth) {
      Vec weight = exp2(load(scores + j) - max_sum[0]);
      total += weight;
      if constexpr (Tile<T, Cache>::kHasScales) weight *= load(tile_.value_scales() + j);
      store(reinterpret_cast<Weight*>(kHasUnit ? static_cast<void*>(scores) : weights) + j, weight);
    }
    max_sum[1] = sum(total);
    if constexpr (kHasUnit) return round_to_int16(scores, width, reinterpret_cast<int16_t*>(weights));
    return 1.0f;
  }

  // Scores in powers of two to soft_cap * tanh(score / soft_cap); tanh(x) = 1 - 2 / (1 + e^2x).
  void cap(float* scores, int64_t width) const {
    const float outer = a_.soft_cap * kLog2E, inner = 2.f / a_.soft_cap;
    for (int64_t j = 0; j < width; j += kWidth) {
      const Vec twice = load(scores + j) * inner;
      store(scores + j, outer - 2.f * outer / (1.f + exp2(select(twice > 126.f, broadcast(126.f), twice))));
    }
  }

  static constexpr bool kHasUnit = std::is_same_v<Operand, IntPair>;  // integers, each row's with a unit of its own
  using Weight = std::conditional_t<kDepth<Operand> == 1 || kHasUnit, float, T>;

  const PagedAttentionArgs& a_;
  const Sizes sizes_;
  float* const partials_;
  Tile<T, Cache> tile_;
  bool is_ahead_ = false;      // the tile has located the next task's keys
  bool keeps_panels_ = false;  // whether a tile becomes panels, once for many rows
  Buffer<Operand> queries_;    // [max_rows, padded_dim] in operands
  Buffer<float> query_steps_;  // [max_rows] what one unit of them is worth
  Buffer<float> values_;       // [max_rows, padded_dim]
  std::unique_ptr<Running[]> running_;
  Buffer<Operand> key_panels_, value_panels_;
  Buffer<float> scores_;       // [kPanelRows, kTile]
  Buffer<Operand> weights_;    // [kPanelRows, kTile] in operands
  Buffer<float> tile_values_;  // [kPanelRows, padded_dim + 2]
};

// Runs step(worker, i, j) for each i in [0, size), whichever thread is free taking the next; j is what this thread
// takes after i, size or more for nothing.
template <typename Worker, typename Step>
void for_each(const PagedAttentionArgs& a, const Plan& plan, float* partials, int64_t size, int64_t operations,
              const Step& step) {
  int64_t next = 0;
  const int64_t threads = std::clamp<int64_t>(operations / kMinTaskOperations, 1, size);
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    Worker worker(a, plan.max_rows, partials);
    const auto take = [&] { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); };
    for (int64_t i = take(), following; i < size; i = following) {
      following = take();
      step(worker, i, following);
    }
  });
}

template <typename Worker>
void run(const PagedAttentionArgs& a) {
  const Plan plan = make_plan(a);
  const int64_t num_tasks = plan.tasks.size(), num_merges = plan.merges.size();
  int64_t cost = 0;
  for (const Task& task : plan.tasks) cost += task.cost();
  const int64_t operations = cost * kTile * a.head_dim * 2 * a.num_heads / a.num_kv_heads;
  Buffer<float> partials(plan.partial_floats);
  for_each<Worker>(a, plan, partials, num_tasks, operations, [&](Worker& worker, int64_t i, int64_t following) {
    worker.run(plan.tasks[i], following < num_tasks ? &plan.tasks[following] : nullptr);
  });
  if (num_merges == 0) return;
  for_each<Worker>(a, plan, partials, num_merges, plan.partial_floats,
                   [&](Worker& worker, int64_t i, int64_t) { worker.merge(plan.merges[i]); });
}

}  // namespace

void paged_attention(const PagedAttentionArgs& args) {
  dispatch(args.dtype,
           [&]<typename T>(T*) { args.k_scales == nullptr ? run<Worker<T, T>>(args) : run<Worker<T, int8_t>>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
