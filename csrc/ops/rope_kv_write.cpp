// rope_kv_write.cpp — allocation; the checks are in rope_args.h, the arithmetic in cpu/ and cuda/.
#include "rope_args.h"

namespace tinyserve {

Tensor rope_kv_write(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& k_cache, const Tensor& v_cache, int64_t num_heads, const OptionalTensor& k_scales,
                     const OptionalTensor& v_scales) {
  RopeKvWriteArgs args = rope_args(qkv, positions, cos_sin, slots, k_cache, v_cache, num_heads, k_scales, v_scales);
  const DeviceGuard guard(qkv.get_device());
  Tensor q = allocate(qkv, {args.tokens, num_heads, args.head_dim});
  args.q = q.data_ptr();
  if (args.tokens > 0) backend::rope_kv_write(args, current_stream(qkv));
  return q;
}

}  // namespace tinyserve
