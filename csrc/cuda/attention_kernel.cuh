// attention_kernel.cuh — attention of a launch's requests over the paged cache, one CTA's share of units after another,
// and how it is started. What a share is: attention_work.cuh.
//
// Each attention/*.cu compiles it for one size of heads and one phase, so that they compile side by side.
#pragma once

#include "attention.h"
#include "attention_merge.cuh"
#include "attention_ring.cuh"
#include "attention_token.cuh"
#include "device.cuh"
#include "launch.cuh"

namespace tinyserve::cuda {

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMaxCtas)
    paged_attention_kernel(const __grid_constant__ JobOf<Shape> job) {
  static_assert(Shape::kShareAt + int(sizeof(AttentionShare<Shape>)) <= Shape::kTokenAt);
  char* queries = shared_memory();
  char* scratch = queries + Shape::kScratchAt;
  auto& share = *reinterpret_cast<AttentionShare<Shape>*>(queries + Shape::kShareAt);
  grid_dependency_wait();
  grid_dependency_launch();
  share.find(job, scratch);
  if (share.units == 0) return;

  const KeyRing<Shape> ring(job, queries);
  using Place = typename KeyRing<Shape>::Place;
  AttentionWalk<Shape> walk = share.begin;
  Place next;
  {
    AttentionWalk<Shape> ahead = walk;
    Place places[Shape::kStages + 1];
#pragma unroll
    for (Place& place : places) place = ring.ask(ahead);
#pragma unroll
    for (int stage = 0; stage < Shape::kStages; ++stage) ring.note(stage, places[stage]);
    next = places[Shape::kStages];
    if (threadIdx.x == 0) share.ahead[0] = ahead;
  }
  __syncthreads();
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
    ring.load(stage);
    cp_async_commit();
  }

  const int key_warp = threadIdx.x / kWarpSize % Shape::kKeyWarps;
  constexpr int kWarpKeys = Shape::kKeys / Shape::kKeyWarps;
  WarpRows<Shape> rows;
  bool starts = true;  // a row tile
  for (int stage = 0, turn = 0;; stage = stage + 1 == Shape::kStages ? 0 : stage + 1, turn ^= 1) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();  // the tile is there for all, the one before it is done with by all
    const int freed = stage == 0 ? Shape::kStages - 1 : stage - 1;
    if (walk.left >= Shape::kStages) ring.load(freed);
    cp_async_commit();
    ring.note(stage, next);
    {
      AttentionWalk<Shape> ahead = share.ahead[turn];
      next = ring.ask(ahead);
      if (threadIdx.x == 0) share.ahead[turn ^ 1] = ahead;
    }

    if (starts) {
      if constexpr (Shape::kRotates) {
        NewToken<Shape>(queries).rotate(job, walk, queries);
      } else {
        load_queries(job, walk, queries);
      }
      rows.start();
      __syncthreads();
    }
    if constexpr (Shape::kRotates) {
      if (walk.ends_row_tile()) {
        NewToken<Shape>(queries).join(job, ring, stage, walk.end_key - 1 - walk.tile * Shape::kKeys);
        __syncthreads();
      }
    }
    const int tile_key = walk.tile * Shape::kKeys;
    const int first_limit = walk.rows.cached + walk.first_row() / job.group + 1;  // keys that the first row sees
    const bool sees_all =
        tile_key + Shape::kKeys <= first_limit && (job.window == 0 || tile_key >= walk.end_key - job.window);
#pragma unroll 1
    for (int first = key_warp * kWarpKeys; first < (key_warp + 1) * kWarpKeys; first += Shape::kStep) {
      if (tile_key + first >= walk.end_key) break;
      rows.attend(job, walk, queries, ring.keys(stage), ring.values(stage), ring.scales(stage), first, sees_all);
    }
    starts = walk.ends_row_tile();
    if (starts || walk.left == 1) {
      rows.finish();
      merge_warps<Shape>(rows, ring.keys(stage), scratch);
      write_rows(job, walk, parts_of(share, walk), rows, reinterpret_cast<int*>(scratch));
    }
    if (walk.left == 1) return;
    walk.advance(job);
  }
}

// Calls f with the shape for the activations and the cache of a call.
template <int kDim, Phase kPhase, typename F>
void dispatch_shape(const PagedAttentionArgs& a, const F& f) {
  dispatch_half(a.dtype, [&](auto type) {
    using T = decltype(type);
    dispatch_cache<T>(a.cache_dtype, [&](auto cache) { f(AttentionShape<T, decltype(cache), kDim, kPhase>{}); });
  });
}

template <typename Shape>
int num_ctas() {
  const Device device = current_device();
  return std::min(kMaxCtas, Shape::ctas(device.multiprocessors, device.shared_bytes));
}

inline AttentionJob make_job(const PagedAttentionArgs& a, QueryLimits limits, void* stream) {
  return {.a = a,
          .group = int(a.num_heads / a.num_kv_heads),
          .window = int(std::min<int64_t>(a.window, 0x7fffffff)),
          .min_queries = limits.least,
          .max_queries = limits.most,
          .arrivals_row = arrivals_row(stream)};
}

template <int kDim, Phase kPhase, typename Job>
void launch_job(const char* name, const Job& job, void* stream) {
  dispatch_shape<kDim, kPhase>(job.a, [&](auto shape) {
    using Shape = decltype(shape);
    launch_kernel(name, paged_attention_kernel<Shape>, dim3(num_ctas<Shape>()), dim3(Shape::kThreads),
                  Shape::kSharedBytes, stream, LaunchOptions{.dependent = true}, job);
  });
}

template <int kDim, Phase kPhase>
void launch_attention(const PagedAttentionArgs& a, QueryLimits limits, void* stream) {
  launch_job<kDim, kPhase>("paged_attention", make_job(a, limits, stream), stream);
}

template <int kDim>
void launch_rope_attention(const RopePagedAttentionArgs& args, void* stream) {
  const RotatingJob job{make_job(args.attention, {1, 1}, stream), args.rope};
  launch_job<kDim, Phase::kRopeDecode>("rope_paged_attention", job, stream);
}

// Each CTA may have parts of the first and of the last row tile of its share.
template <int kDim, Phase kPhase>
int64_t attention_workspace(const PagedAttentionArgs& a) {
  int64_t floats = 0;
  dispatch_shape<kDim, kPhase>(
      a, [&](auto shape) { floats = 2 * num_ctas<decltype(shape)>() * decltype(shape)::kPartFloats; });
  return floats;
}

}  // namespace tinyserve::cuda
