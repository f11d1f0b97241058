// rope_args.h — what rope_kv_write is given, checked; rope_paged_attention is given the same.
#pragma once

#include "caches.h"

namespace tinyserve {

// All but q, which is allocated once it is known who needs it.
inline RopeKvWriteArgs rope_args(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const Tensor& slots,
                                 const Tensor& k_cache, const Tensor& v_cache, int64_t num_heads,
                                 const OptionalTensor& k_scales, const OptionalTensor& v_scales) {
  check_dim(qkv, "qkv", 2, "[T, (H + 2*Hkv) * D]");
  check_dim(k_cache, "k_cache", 4, "[blocks, Hkv, S, D]");
  check_dim(cos_sin, "cos_sin", 2, "[P, R]");
  const Dtype dtype = to_dtype(qkv, "qkv");
  const int64_t tokens = qkv.size(0), num_blocks = k_cache.size(0), num_kv_heads = k_cache.size(1);
  const int64_t block_size = k_cache.size(2), head_dim = k_cache.size(3);
  const int64_t num_positions = cos_sin.size(0), rotary_dim = cos_sin.size(1);
  STD_TORCH_CHECK(num_heads > 0, "num_heads must be positive, got ", num_heads);
  check_tensor(qkv, "qkv", {tokens, (num_heads + 2 * num_kv_heads) * head_dim}, qkv.scalar_type(), qkv);
  const CacheDtype cache_dtype = check_caches(k_cache, v_cache, k_scales, v_scales, qkv);
  STD_TORCH_CHECK(head_dim <= kMaxHeadDim, "the head dimension must be at most ", kMaxHeadDim, ", got ", head_dim);
  check_tensor(positions, "positions", {tokens}, ScalarType::Int, qkv);
  check_tensor(slots, "slots", {tokens}, ScalarType::Int, qkv);
  STD_TORCH_CHECK(rotary_dim % 2 == 0 && rotary_dim <= head_dim, "cos_sin must be float32 [P, R], R even and at most ",
                  head_dim, ", got ", shape(cos_sin.sizes()));
  check_tensor(cos_sin, "cos_sin", {num_positions, rotary_dim}, ScalarType::Float, qkv);

  const RopeKvWriteArgs args{
      .qkv = qkv.data_ptr(),
      .positions = static_cast<const int32_t*>(positions.data_ptr()),
      .cos_sin = static_cast<const float*>(cos_sin.data_ptr()),
      .slots = static_cast<const int32_t*>(slots.data_ptr()),
      .k_cache = k_cache.data_ptr(),
      .v_cache = v_cache.data_ptr(),
      .k_scales = k_scales ? static_cast<float*>(k_scales->data_ptr()) : nullptr,
      .v_scales = v_scales ? static_cast<float*>(v_scales->data_ptr()) : nullptr,
      .q = nullptr,
      .tokens = tokens,
      .num_heads = num_heads,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .rotary_dim = rotary_dim,
      .block_size = block_size,
      .key_strides = key_strides(k_cache),
      .dtype = dtype,
      .cache_dtype = cache_dtype,
  };
#if !defined(TINYSERVE_CUDA)  // what lies in this memory can be looked at for nothing
  check_range("positions", args.positions, tokens, 0, num_positions);
  check_range("slots", args.slots, tokens, -1, num_blocks * block_size);
#endif
  return args;
}

}  // namespace tinyserve
