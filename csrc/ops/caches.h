// caches.h — the check of a paged cache, which is of the activations' dtype or of 8 bits with scales.
#pragma once

#include "tensors.h"

namespace tinyserve {

// Either of the layouts that kernels.h names; the GPU's kernels know the first alone.
inline KeyStrides key_strides(const Tensor& k_cache) {
  const int64_t size = k_cache.size(2), dim = k_cache.size(3);
#if !defined(TINYSERVE_CUDA) && !defined(TINYSERVE_EMULATED)
  const auto strides = k_cache.strides();
  const bool by_channel =
      strides[0] == k_cache.size(1) * dim * size && strides[1] == dim * size && strides[2] == 1 && strides[3] == size;
  if (by_channel) return {.key = 1, .channel = size};
#endif
  check_contiguous(k_cache, "k_cache");
  return {.key = dim, .channel = 1};
}

// k_cache has four dimensions, [blocks, Hkv, S, D]; `like` is of the activations.
inline CacheDtype check_caches(const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& k_scales,
                               const OptionalTensor& v_scales, const Tensor& like) {
  const auto sizes = k_cache.sizes();
  STD_TORCH_CHECK(k_scales.has_value() == v_scales.has_value(), "k_scales and v_scales must come together");
  ScalarType dtype = like.scalar_type();
  if (k_scales) {
    dtype = ScalarType::Char;
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
    if (k_cache.scalar_type() == ScalarType::Float8_e4m3fn) dtype = ScalarType::Float8_e4m3fn;
#endif
  }
  STD_TORCH_CHECK(k_cache.scalar_type() == dtype, "k_cache must be ", toString(dtype), ", got ",
                  toString(k_cache.scalar_type()));
  key_strides(k_cache);
  STD_TORCH_CHECK(k_cache.device() == like.device(), "k_cache must be on the device of the other arguments");
  check_tensor(v_cache, "v_cache", {sizes[0], sizes[1], sizes[2], sizes[3]}, dtype, like);
  if (!k_scales) return CacheDtype::kActivations;
  check_tensor(*k_scales, "k_scales", {sizes[0], sizes[1], sizes[2]}, ScalarType::Float, like);
  check_tensor(*v_scales, "v_scales", {sizes[0], sizes[1], sizes[2]}, ScalarType::Float, like);
  return dtype == ScalarType::Char ? CacheDtype::kInt8 : CacheDtype::kFloat8;
}

}  // namespace tinyserve
