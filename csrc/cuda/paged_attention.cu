// paged_attention.cu — which kernels a call of paged_attention needs. They are in attention_kernel.cuh, compiled for
// each size of heads and each phase.
//
// The lengths of the requests lie in the GPU's memory, so that a captured graph can be replayed with others; here only
// the numbers of tokens and of requests are known. With no more tokens than requests the batch decodes. Otherwise the
// requests of few queries are one launch's and the others a second one's. Shapes: PagedAttentionArgs in kernels.h.
// Twin: cpu/paged_attention.cpp. Test: tests/kernels/test_paged_attention.py.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace tinyserve::cuda {
namespace {

constexpr int kAnyQueries = std::numeric_limits<int>::max();
constexpr int kDecodeRows = 16;  // of a row tile when decoding

// Calls run.template operator()<kDim, kPhase>(limits) for every launch.
template <int kDim, typename Run>
void for_heads_of(const PagedAttentionArgs& a, const Run& run) {
  const int few = int(std::max<int64_t>(1, kDecodeRows * a.num_kv_heads / a.num_heads));
  if (a.tokens <= (a.num_requests == 1 ? few : a.num_requests)) {
    run.template operator()<kDim, Phase::kDecode>(QueryLimits{1, kAnyQueries});
    return;
  }
  if (a.num_requests > 1) run.template operator()<kDim, Phase::kDecode>(QueryLimits{1, few});
  run.template operator()<kDim, Phase::kPrefill>(QueryLimits{a.num_requests > 1 ? few + 1 : 1, kAnyQueries});
}

template <typename Run>
void for_each_launch(const PagedAttentionArgs& a, const Run& run) {
  dispatch_head(a.head_dim, [&]<int kDim>() { for_heads_of<kDim>(a, run); });
}

}  // namespace

int64_t paged_attention_workspace(const PagedAttentionArgs& args) {
  int64_t floats = 0;
  for_each_launch(args, [&]<int kDim, Phase kPhase>(QueryLimits) {
    floats = std::max(floats, attention_workspace<kDim, kPhase>(args));
  });
  return floats;
}

void paged_attention(const PagedAttentionArgs& args, void* stream) {
  for_each_launch(
      args, [&]<int kDim, Phase kPhase>(QueryLimits limits) { launch_attention<kDim, kPhase>(args, limits, stream); });
}

}  // namespace tinyserve::cuda
