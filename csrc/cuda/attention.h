// attention.h — what paged_attention.cu knows of its kernels: one for each size of heads and each phase.
#pragma once

#include "../kernels.h"

namespace tinyserve::cuda {

// Decoding suits a request of few queries for each key head and much to read, prefill one of many queries. Both are
// right for any. kRopeDecode decodes requests of one query, which comes unrotated with its key and value.
enum class Phase { kDecode, kRopeDecode, kPrefill };

// Queries of the requests that a launch takes; the others are not its own.
struct QueryLimits {
  int least, most;
};

template <int kDim, Phase kPhase>
void launch_attention(const PagedAttentionArgs& args, QueryLimits limits, void* stream);
template <int kDim>
void launch_rope_attention(const RopePagedAttentionArgs& args, void* stream);

// Floats that a launch needs in args.workspace.
template <int kDim, Phase kPhase>
int64_t attention_workspace(const PagedAttentionArgs& args);

// Calls run.template operator()<kDim>() with the size that the kernels for heads of `head_dim` are compiled for.
template <typename Run>
void dispatch_head(int64_t head_dim, const Run& run) {
  if (head_dim <= 64) return run.template operator()<64>();
  if (head_dim <= 128) return run.template operator()<128>();
  run.template operator()<256>();
}

}  // namespace tinyserve::cuda
