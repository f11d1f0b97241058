// attention_args.h — what paged_attention is given, checked; rope_paged_attention is given the same.
#pragma once

#include "caches.h"

#include <array>
#include <limits>

namespace tinyserve {

#if !defined(TINYSERVE_CUDA)  // what lies in this memory can be looked at for nothing
#if defined(TINYSERVE_EMULATED)
constexpr bool kTakesPadding = true;  // requests without keys
#else
constexpr bool kTakesPadding = false;
#endif
// Every request's queries lie in q, its keys in its blocks and those blocks in the cache.
inline void check_requests(const PagedAttentionArgs& a, int64_t num_blocks) {
  const int32_t* starts = a.query_starts;
  STD_TORCH_CHECK(starts[0] == 0 && starts[a.num_requests] == a.tokens, "query_starts must run from 0 to T=", a.tokens,
                  ", got ", starts[0], "..", starts[a.num_requests]);
  for (int64_t b = 0; b < a.num_requests; ++b) {
    const int64_t query_len = int64_t(starts[b + 1]) - starts[b], context_len = a.context_lens[b];
    const int64_t limit = a.max_blocks * a.block_size;
    STD_TORCH_CHECK(query_len >= 0, "query_starts must not fall, got ", starts[b], " then ", starts[b + 1]);
    if (kTakesPadding && context_len == 0) continue;
    STD_TORCH_CHECK(query_len <= context_len && context_len <= limit, "context_lens[", b, "] must be in ", query_len,
                    "..", limit, ", got ", context_len);
    if (query_len == 0) continue;
    const int64_t used = (context_len + a.block_size - 1) / a.block_size;
    const std::string name = "block_tables[" + std::to_string(b) + "]";
    check_range(name.c_str(), a.block_tables + b * a.max_blocks, used, 0, num_blocks);
  }
}
#endif

// All but q, y and the workspace. `like` is of the queries' dtype and device, which are [tokens, num_heads, head_dim].
inline PagedAttentionArgs attention_args(const Tensor& like, int64_t tokens, int64_t num_heads, int64_t head_dim,
                                         const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_tables,
                                         const Tensor& query_starts, const Tensor& context_lens, double scale,
                                         const OptionalTensor& k_scales, const OptionalTensor& v_scales, int64_t window,
                                         double soft_cap, const OptionalTensor& alibi_slopes) {
  check_dim(k_cache, "k_cache", 4, "[blocks, Hkv, S, D]");
  check_dim(block_tables, "block_tables", 2, "[B, max_blocks]");
  check_dim(context_lens, "context_lens", 1, "[B]");
  const Dtype dtype = to_dtype(like, "q");
  const int64_t num_blocks = k_cache.size(0), num_kv_heads = k_cache.size(1), block_size = k_cache.size(2);
  const int64_t num_requests = context_lens.size(0), max_blocks = block_tables.size(1);
  STD_TORCH_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0 && head_dim == k_cache.size(3), "q must be [T, H, ",
                  k_cache.size(3), "] with H a multiple of ", num_kv_heads, ", got ",
                  shape(std::array{tokens, num_heads, head_dim}));
  STD_TORCH_CHECK(head_dim % 8 == 0 && 0 < head_dim && head_dim <= kMaxHeadDim,
                  "the head dimension must be a multiple of 8 up to ", kMaxHeadDim, ", got ", head_dim);
  const CacheDtype cache_dtype = check_caches(k_cache, v_cache, k_scales, v_scales, like);
  check_tensor(block_tables, "block_tables", {num_requests, max_blocks}, ScalarType::Int, like);
  check_tensor(query_starts, "query_starts", {num_requests + 1}, ScalarType::Int, like);
  check_tensor(context_lens, "context_lens", {num_requests}, ScalarType::Int, like);
  STD_TORCH_CHECK(window >= 0, "window must be 0 (none) or positive, got ", window);
  STD_TORCH_CHECK(soft_cap >= 0, "soft_cap must be 0 (none) or positive, got ", soft_cap);
  if (alibi_slopes) check_tensor(*alibi_slopes, "alibi_slopes", {num_heads}, ScalarType::Float, like);
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
  STD_TORCH_CHECK(dtype != Dtype::kFloat, "q must be float16 or bfloat16 on CUDA, got ", toString(like.scalar_type()));
  STD_TORCH_CHECK(cache_dtype == CacheDtype::kActivations || head_dim % 16 == 0,
                  "the head dimension must be a multiple of 16 for a cache of 8 bits on CUDA, got ", head_dim);
  STD_TORCH_CHECK(num_blocks * num_kv_heads * block_size <= std::numeric_limits<int32_t>::max(),
                  "k_cache must have less than 2^31 rows, got ", shape(k_cache.sizes()));
#endif

  const PagedAttentionArgs args{
      .q = nullptr,
      .k_cache = k_cache.data_ptr(),
      .v_cache = v_cache.data_ptr(),
      .k_scales = k_scales ? static_cast<const float*>(k_scales->data_ptr()) : nullptr,
      .v_scales = v_scales ? static_cast<const float*>(v_scales->data_ptr()) : nullptr,
      .block_tables = static_cast<const int32_t*>(block_tables.data_ptr()),
      .query_starts = static_cast<const int32_t*>(query_starts.data_ptr()),
      .context_lens = static_cast<const int32_t*>(context_lens.data_ptr()),
      .alibi_slopes = alibi_slopes ? static_cast<const float*>(alibi_slopes->data_ptr()) : nullptr,
      .workspace = nullptr,
      .y = nullptr,
      .tokens = tokens,
      .num_requests = num_requests,
      .max_blocks = max_blocks,
      .num_heads = num_heads,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .block_size = block_size,
      .key_strides = key_strides(k_cache),
      .window = window,
      .scale = float(scale),
      .soft_cap = float(soft_cap),
      .dtype = dtype,
      .cache_dtype = cache_dtype,
  };
#if !defined(TINYSERVE_CUDA)
  check_requests(args, num_blocks);
#endif
  return args;
}

}  // namespace tinyserve
