// w8a8_linear.cpp — checks and allocation; the arithmetic is in cpu/.
#include "tensors.h"

namespace tinyserve {

Tensor w8a8_linear(const Tensor& x, const Tensor& qweight, const Tensor& scales, const OptionalTensor& bias,
                   int64_t n) {
  check_dim(x, "x", 2, "[M, K]");
  check_contiguous(x, "x");
  check_dim(qweight, "qweight", 4, "[N/32, K/8, 2, 32]");
  const int64_t m = x.size(0), k = x.size(1), tiles = (n + kPackColumns - 1) / kPackColumns;
  const int64_t group_size = k % kInt8Group == 0 ? kInt8Group : 32;
  STD_TORCH_CHECK(qweight.size(1) * 8 == k, "x must be [M, ", qweight.size(1) * 8, "], got ", shape(x.sizes()));
  const Dtype dtype = to_dtype(x, "x");
  check_tensor(qweight, "qweight", {tiles, k / 8, 2, kPackColumns}, ScalarType::Int, x);
  check_tensor(scales, "scales", {tiles, k / group_size, kPackColumns}, ScalarType::Float, x);
  if (bias) check_tensor(*bias, "bias", {n}, x.scalar_type(), x);

  Tensor y = allocate(x, {m, n});
  Tensor codes = allocate(x, {m, k}, ScalarType::Char);
  Tensor groups = allocate(x, {m, k / group_size, sizeof(Int8Group)}, ScalarType::Char);
  const Int8LinearArgs args{
      .x = x.data_ptr(),
      .codes = static_cast<int8_t*>(codes.data_ptr()),
      .groups = static_cast<Int8Group*>(groups.data_ptr()),
      .qweight = static_cast<const uint32_t*>(qweight.data_ptr()),
      .qparams = scales.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .y = y.data_ptr(),
      .m = m,
      .n = n,
      .k = k,
      .group_size = group_size,
      .x_group = group_size,
      .half_scales = false,
      .dtype = dtype,
  };
  const DeviceGuard guard(x.get_device());
  if (m > 0 && n > 0) backend::w8a8_linear(args, current_stream(x));
  return y;
}

}  // namespace tinyserve
