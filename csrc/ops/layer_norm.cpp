// layer_norm.cpp — checks and allocation; the arithmetic is in cpu/ and cuda/.
#include "tensors.h"

namespace tinyserve {

Tensor layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                  const OptionalTensor& residual) {
  check_dim(x, "x", 2, "[T, C]");
  const int64_t tokens = x.size(0), channels = x.size(1);
  const Dtype dtype = to_dtype(x, "x");
  check_contiguous(x, "x");
  check_tensor(weight, "weight", {channels}, x.scalar_type(), x);
  if (bias) check_tensor(*bias, "bias", {channels}, x.scalar_type(), x);
  if (residual) check_tensor(*residual, "residual", {tokens, channels}, x.scalar_type(), x);

  const DeviceGuard guard(x.get_device());
  Tensor y = allocate(x, {tokens, channels});
  if (tokens == 0 || channels == 0) return y;
  const LayerNormArgs args{
      .x = x.data_ptr(),
      .weight = weight.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .residual = residual ? residual->data_ptr() : nullptr,
      .y = y.data_ptr(),
      .tokens = tokens,
      .channels = channels,
      .eps = float(eps),
      .dtype = dtype,
  };
  backend::layer_norm(args, current_stream(x));
  return y;
}

}  // namespace tinyserve
