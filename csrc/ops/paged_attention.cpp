// paged_attention.cpp — allocation; the checks are in attention_args.h, the arithmetic in cpu/ and cuda/.
#include "attention_args.h"

namespace tinyserve {

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_tables,
                       const Tensor& query_starts, const Tensor& context_lens, double scale,
                       const OptionalTensor& k_scales, const OptionalTensor& v_scales, int64_t window, double soft_cap,
                       const OptionalTensor& alibi_slopes) {
  check_dim(q, "q", 3, "[T, H, D]");
  PagedAttentionArgs args =
      attention_args(q, q.size(0), q.size(1), q.size(2), k_cache, v_cache, block_tables, query_starts, context_lens,
                     scale, k_scales, v_scales, window, soft_cap, alibi_slopes);
  check_contiguous(q, "q");
  const DeviceGuard guard(q.get_device());
  Tensor y = allocate(q, {args.tokens, args.num_heads, args.head_dim});
  args.q = q.data_ptr();
  args.y = y.data_ptr();
  if (args.tokens == 0) return y;
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
  const Tensor workspace = allocate(q, {cuda::paged_attention_workspace(args)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.data_ptr());
#endif
  backend::paged_attention(args, current_stream(q));
  return y;
}

}  // namespace tinyserve
