// linear.cpp — checks and allocation; the arithmetic is in cpu/ and cuda/.
#include "tensors.h"

namespace tinyserve {

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_dim(x, "x", 2, "[M, K]");
  check_dim(weight, "weight", 2, "[N, K]");
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const Dtype dtype = to_dtype(x, "x");
  STD_TORCH_CHECK(weight.size(1) == k, "x must be [M, ", weight.size(1), "], got ", shape(x.sizes()));
  check_contiguous(x, "x");
  check_tensor(weight, "weight", {n, k}, x.scalar_type(), x);
  if (bias) check_tensor(*bias, "bias", {n}, x.scalar_type(), x);

  const DeviceGuard guard(x.get_device());
  Tensor y = allocate(x, {m, n});
  if (m == 0 || n == 0) return y;
  std::optional<Tensor> scratch;
  if (dtype != Dtype::kFloat) scratch = allocate(x, {m, k}, ScalarType::Float);
  const LinearArgs args{
      .x = x.data_ptr(),
      .scratch = scratch ? static_cast<float*>(scratch->data_ptr()) : nullptr,
      .weight = weight.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .y = y.data_ptr(),
      .m = m,
      .n = n,
      .k = k,
      .dtype = dtype,
  };
  backend::linear(args, current_stream(x));
  return y;
}

}  // namespace tinyserve
