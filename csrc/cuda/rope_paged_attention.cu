// rope_paged_attention.cu — a decode step's attention from the projection on, in one kernel where heads can be taken in
// pieces of 16 bytes, else in the two of rope_kv_write.cu and paged_attention.cu: the same bits either way.
//
// The kernel is paged_attention's for decoding, with attention_token.cuh in it. Shapes: RopePagedAttentionArgs in
// kernels.h. Twin: cpu/rope_paged_attention.cpp. Test: tests/kernels/test_rope_paged_attention.py.
#include "attention.h"
#include "launch.cuh"
#include "rotary.cuh"

namespace tinyserve::cuda {

bool fuses_rope(const RopeKvWriteArgs& args) {
  bool fuses = false;
  dispatch_half(args.dtype, [&](auto type) { fuses = has_whole_pieces<decltype(type)>(args); });
  return fuses;
}

int64_t rope_paged_attention_workspace(const RopePagedAttentionArgs& args) {
  if (!fuses_rope(args.rope)) return paged_attention_workspace(args.attention);
  int64_t floats = 0;
  dispatch_head(args.rope.head_dim,
                [&]<int kDim>() { floats = attention_workspace<kDim, Phase::kRopeDecode>(args.attention); });
  return floats;
}

void rope_paged_attention(const RopePagedAttentionArgs& args, void* stream) {
  if (!fuses_rope(args.rope)) {
    rope_kv_write(args.rope, stream);
    paged_attention(args.attention, stream);
    return;
  }
  dispatch_head(args.rope.head_dim, [&]<int kDim>() { launch_rope_attention<kDim>(args, stream); });
}

}  // namespace tinyserve::cuda
