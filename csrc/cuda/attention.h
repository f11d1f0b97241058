// attention.h — what paged_attention.cu knows of its kernels: one for each size of heads and each phase.
#pragma once

#include "../kernels.h"

namespace tinyserve::cuda {

// Decoding suits a request of few queries for each key head and much to read, prefill one of many queries. Both are
// right for any.
enum class Phase { kDecode, kPrefill };

// Queries of the requests that a launch takes; the others are not its own.
struct QueryLimits {
  int least, most;
};

template <int kDim, Phase kPhase>
void launch_attention(const PagedAttentionArgs& args, QueryLimits limits, void* stream);

// Floats that a launch needs in args.workspace.
template <int kDim, Phase kPhase>
int64_t attention_workspace(const PagedAttentionArgs& args);

}  // namespace tinyserve::cuda
