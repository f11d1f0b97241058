// packed.h — the tensors that hold a packed weight on each backend: their sizes, and the dtype of the scales in them.
// What stands where in them: kernels.h.
#pragma once

#include "tensors.h"

#include <optional>
#include <vector>

namespace tinyserve {

struct PackedSizes {
  std::vector<int64_t> qweight;  // int32
  std::vector<int64_t> qparams;
  ScalarType params;  // of qparams
};

constexpr int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

namespace cpu {

constexpr bool kConvertsX = true;  // the kernels read x in fp32, from a scratch
constexpr int64_t kAlignment = 1;  // bytes, that x must begin on

// In which dtype scales are kept. A packed weight serves activations of every dtype: the one asked for says nothing.
inline ScalarType kept_scales(ScalarType scales, const std::optional<ScalarType>& /*activations*/) {
  return scales == ScalarType::Half ? ScalarType::Half : ScalarType::Float;
}
inline ScalarType kept_scales(const Tensor& qparams) {
  const bool half = qparams.dim() == 3 && qparams.size(2) == kParamBytesHalf;
  return half ? ScalarType::Half : ScalarType::Float;
}
inline void check_activations(const Tensor& /*x*/, const Tensor& /*qparams*/) {}

inline PackedSizes packed_sizes(int64_t n, int64_t k, int64_t group_size, ScalarType scales) {
  const int64_t tiles = blocks_of(n, kPackColumns);
  const int64_t bytes = scales == ScalarType::Half ? kParamBytesHalf : kParamBytesFloat;
  return {{tiles, k / kPackFactor, kPackColumns}, {tiles, k / group_size, bytes}, ScalarType::Byte};
}

}  // namespace cpu

namespace cuda {

constexpr bool kConvertsX = false;
constexpr int64_t kAlignment = 16;

// That of the activations: as asked, else the scales' own where it has 16 bits, else fp16.
inline ScalarType kept_scales(ScalarType scales, const std::optional<ScalarType>& activations) {
  const auto has_16_bits = [](ScalarType dtype) { return dtype == ScalarType::Half || dtype == ScalarType::BFloat16; };
  if (activations && has_16_bits(*activations)) return *activations;
  return has_16_bits(scales) ? scales : ScalarType::Half;
}
inline ScalarType kept_scales(const Tensor& qparams) {
  const ScalarType dtype = qparams.scalar_type();
  return dtype == ScalarType::BFloat16 ? dtype : ScalarType::Half;
}
inline void check_activations(const Tensor& x, const Tensor& qparams) {
  STD_TORCH_CHECK(x.scalar_type() == qparams.scalar_type(), "x must be ", toString(qparams.scalar_type()),
                  ", which the weight is packed for, got ", toString(x.scalar_type()));
}

inline PackedSizes packed_sizes(int64_t n, int64_t k, int64_t group_size, ScalarType scales) {
  const int64_t blocks_n = blocks_of(n, kPackBlock), blocks_k = blocks_of(k, kPackBlock);
  return {{blocks_n, blocks_k, 4, 32, 4}, {blocks_n, blocks_of(blocks_k * kPackBlock, group_size), 4, 8, 2, 2}, scales};
}

}  // namespace cuda

inline void check_group_size(int64_t k, int64_t group_size) {
  STD_TORCH_CHECK(k > 0 && k % 32 == 0, "K must be a positive multiple of 32, got K=", k);
  STD_TORCH_CHECK(group_size == 32 || group_size == 64 || group_size == 128 || group_size == k,
                  "the group size must be 32, 64, 128 or K=", k, ", got ", group_size);
  STD_TORCH_CHECK(k % group_size == 0, "the group size must divide K=", k, ", got ", group_size);
}

// That the two tensors are a weight [n, k] packed for this backend.
inline void check_packed(const Tensor& qweight, const Tensor& qparams, int64_t n, int64_t k, int64_t group_size,
                         const Tensor& like) {
  STD_TORCH_CHECK(n >= 0, "n must not be negative, got ", n);
  check_group_size(k, group_size);
  const PackedSizes sizes = backend::packed_sizes(n, k, group_size, backend::kept_scales(qparams));
  check_tensor(qweight, "qweight", sizes.qweight, ScalarType::Int, like);
  check_tensor(qparams, "qparams", sizes.qparams, sizes.params, like);
}

}  // namespace tinyserve
