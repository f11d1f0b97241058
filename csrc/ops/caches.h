// caches.h — the check of a paged cache, which is of the activations' dtype or of 8 bits with scales.
#pragma once

#include "tensors.h"

namespace tinyserve {

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
  check_tensor(k_cache, "k_cache", {sizes[0], sizes[1], sizes[2], sizes[3]}, dtype, like);
  check_tensor(v_cache, "v_cache", {sizes[0], sizes[1], sizes[2], sizes[3]}, dtype, like);
  if (!k_scales) return CacheDtype::kActivations;
  check_tensor(*k_scales, "k_scales", {sizes[0], sizes[1], sizes[2]}, ScalarType::Float, like);
  check_tensor(*v_scales, "v_scales", {sizes[0], sizes[1], sizes[2]}, ScalarType::Float, like);
  return dtype == ScalarType::Char ? CacheDtype::kInt8 : CacheDtype::kFloat8;
}

}  // namespace tinyserve
