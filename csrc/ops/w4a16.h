// w4a16.h — what w4a16_gemv, w4a16_gemm and w4a8_linear check and allocate alike.
#pragma once

#include "tensors.h"

namespace tinyserve {

struct W4A16Call {
  Tensor y;
  std::optional<Tensor> scratch;  // lives as long as the kernel runs
  W4A16Args args;
};

constexpr int64_t kGateRows = 8;  // consecutive rows of the gate, then as many of the up projection

inline W4A16Call prepare_w4a16(const Tensor& x, const Tensor& qweight, const Tensor& qparams,
                               const OptionalTensor& bias, int64_t n, const OptionalTensor& residual = std::nullopt,
                               bool silu_mul = false, bool needs_floats = true) {
  check_dim(x, "x", 2, "[M, K]");
  check_dim(qweight, "qweight", 3, "[N/32, K/8, 32]");
  check_dim(qparams, "qparams", 3, "[N/32, K/G, 96 or 160]");
  const int64_t m = x.size(0), k = x.size(1), groups = qparams.size(1), param_bytes = qparams.size(2);
  const int64_t tiles = (n + kPackColumns - 1) / kPackColumns;
  STD_TORCH_CHECK(qweight.size(1) * kPackFactor == k, "x must be [M, ", qweight.size(1) * kPackFactor, "], got ",
                  shape(x.sizes()));
  const Dtype dtype = to_dtype(x, "x");
  check_contiguous(x, "x");
  check_tensor(qweight, "qweight", {tiles, k / kPackFactor, kPackColumns}, ScalarType::Int, x);
  const bool groups_fit = k > 0 && groups > 0 && k % groups == 0 && k / groups % 32 == 0;
  STD_TORCH_CHECK(groups_fit && (param_bytes == kParamBytesHalf || param_bytes == kParamBytesFloat),
                  "qparams must be [N/32, K/G, 96 or 160] with G dividing K=", k, ", got ", shape(qparams.sizes()));
  check_tensor(qparams, "qparams", {tiles, groups, param_bytes}, ScalarType::Byte, x);
  if (bias) check_tensor(*bias, "bias", {n}, x.scalar_type(), x);
  STD_TORCH_CHECK(!silu_mul || n % (2 * kGateRows) == 0, "silu_mul needs n in tiles of ", 2 * kGateRows, ", got n=", n);
  const int64_t columns = silu_mul ? n / 2 : n;
  if (residual) check_tensor(*residual, "residual", {m, columns}, x.scalar_type(), x);

  W4A16Call call{.y = allocate(x, {m, columns}), .scratch = std::nullopt, .args = {}};
  if (needs_floats && dtype != Dtype::kFloat) call.scratch = allocate(x, {m, k}, ScalarType::Float);
  call.args = {
      .x = x.data_ptr(),
      .scratch = call.scratch ? static_cast<float*>(call.scratch->data_ptr()) : nullptr,
      .qweight = static_cast<const uint32_t*>(qweight.data_ptr()),
      .qparams = static_cast<const uint8_t*>(qparams.data_ptr()),
      .bias = bias ? bias->data_ptr() : nullptr,
      .residual = residual ? residual->data_ptr() : nullptr,
      .y = call.y.data_ptr(),
      .m = m,
      .n = n,
      .k = k,
      .group_size = k / groups,
      .half_scales = param_bytes == kParamBytesHalf,
      .silu_mul = silu_mul,
      .dtype = dtype,
      .config = -1,
      .workspace = nullptr,
  };
  return call;
}

}  // namespace tinyserve
