// w4a16.h — what w4a16_gemv, w4a16_gemm and w4a8_linear check and allocate alike.
#pragma once

#include "packed.h"

namespace tinyserve {

struct W4A16Call {
  Tensor x, y;
  std::optional<Tensor> scratch;  // lives as long as the kernel runs
  W4A16Args args;
};

inline bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % backend::kAlignment == 0; }

constexpr int64_t kGateRows = 8;  // consecutive rows of the gate, then as many of the up projection

inline W4A16Call prepare_w4a16(const Tensor& x, const Tensor& qweight, const Tensor& qparams,
                               const OptionalTensor& bias, int64_t n, int64_t k, int64_t group_size,
                               const OptionalTensor& residual = std::nullopt, bool silu_mul = false,
                               bool needs_floats = true) {
  check_dim(x, "x", 2, "[M, K]");
  const int64_t m = x.size(0);
  STD_TORCH_CHECK(x.size(1) == k, "x must be [M, ", k, "], got ", shape(x.sizes()));
  const Dtype dtype = to_dtype(x, "x");
  check_contiguous(x, "x");
  check_packed(qweight, qparams, n, k, group_size, x);
  backend::check_activations(x, qparams);
  if (bias) check_tensor(*bias, "bias", {n}, x.scalar_type(), x);
  STD_TORCH_CHECK(!silu_mul || n % (2 * kGateRows) == 0, "silu_mul needs n in tiles of ", 2 * kGateRows, ", got n=", n);
  const int64_t columns = silu_mul ? n / 2 : n;
  if (residual) check_tensor(*residual, "residual", {m, columns}, x.scalar_type(), x);

  W4A16Call call{.x = is_aligned(x) ? x : torch::stable::clone(x),
                 .y = allocate(x, {m, columns}),
                 .scratch = std::nullopt,
                 .args = {}};
  if (backend::kConvertsX && needs_floats && dtype != Dtype::kFloat)
    call.scratch = allocate(x, {m, k}, ScalarType::Float);
  call.args = {
      .x = call.x.data_ptr(),
      .scratch = call.scratch ? static_cast<float*>(call.scratch->data_ptr()) : nullptr,
      .qweight = static_cast<const uint32_t*>(qweight.data_ptr()),
      .qparams = static_cast<const uint8_t*>(qparams.data_ptr()),
      .bias = bias ? bias->data_ptr() : nullptr,
      .residual = residual ? residual->data_ptr() : nullptr,
      .y = call.y.data_ptr(),
      .m = m,
      .n = n,
      .k = k,
      .group_size = group_size,
      .half_scales = backend::kept_scales(qparams) == ScalarType::Half,
      .silu_mul = silu_mul,
      .dtype = dtype,
      .config = -1,
      .workspace = nullptr,
      .norm_weight = nullptr,
      .eps = 0.f,
  };
  return call;
}

}  // namespace tinyserve
