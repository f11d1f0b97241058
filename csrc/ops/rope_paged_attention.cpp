// rope_paged_attention.cpp — checks and allocation; the arithmetic is in cpu/ and cuda/.
#include "attention_args.h"
#include "rope_args.h"

namespace tinyserve {

Tensor rope_paged_attention(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const Tensor& slots,
                            const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_tables,
                            const Tensor& query_starts, const Tensor& context_lens, int64_t num_heads, double scale,
                            const OptionalTensor& k_scales, const OptionalTensor& v_scales, int64_t window,
                            double soft_cap, const OptionalTensor& alibi_slopes) {
  RopePagedAttentionArgs args;
  args.rope = rope_args(qkv, positions, cos_sin, slots, k_cache, v_cache, num_heads, k_scales, v_scales);
  const int64_t tokens = args.rope.tokens, head_dim = args.rope.head_dim;
  args.attention = attention_args(qkv, tokens, num_heads, head_dim, k_cache, v_cache, block_tables, query_starts,
                                  context_lens, scale, k_scales, v_scales, window, soft_cap, alibi_slopes);
#if !defined(TINYSERVE_CUDA)  // what lies in this memory can be looked at for nothing
  for (int64_t b = 0; b < args.attention.num_requests; ++b) {
    const int32_t* start = args.attention.query_starts + b;
    STD_TORCH_CHECK(start[1] - start[0] <= 1, "a request must have at most one query, got ", start[1] - start[0]);
  }
#endif
  const DeviceGuard guard(qkv.get_device());
  Tensor y = allocate(qkv, {tokens, num_heads, head_dim});
  args.attention.y = y.data_ptr();
  if (tokens == 0) return y;
  OptionalTensor q;
  if (!backend::fuses_rope(args.rope)) q = allocate(qkv, {tokens, num_heads, head_dim});
  args.attention.q = args.rope.q = q ? q->data_ptr() : nullptr;
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
  const Tensor workspace = allocate(qkv, {cuda::rope_paged_attention_workspace(args)}, ScalarType::Float);
  args.attention.workspace = static_cast<float*>(workspace.data_ptr());
#endif
  backend::rope_paged_attention(args, current_stream(qkv));
  return y;
}

}  // namespace tinyserve
