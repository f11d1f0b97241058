// w4a8_linear.cpp — scratch for the rounded activations; the checks are in w4a16.h, the arithmetic in cpu/.
#include "w4a16.h"

namespace tinyserve {

Tensor w4a8_linear(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                   int64_t k, int64_t group_size) {
  const W4A16Call call = prepare_w4a16(x, qweight, qparams, bias, n, k, group_size, std::nullopt, /*silu_mul=*/false,
                                       /*needs_floats=*/false);
  const W4A16Args& exact = call.args;
  const int64_t x_group = int8_group(exact.group_size);
  Tensor codes = allocate(x, {exact.m, exact.k}, ScalarType::Char);
  Tensor groups = allocate(x, {exact.m, exact.k / x_group, sizeof(Int8Group)}, ScalarType::Char);
  const Int8LinearArgs args{
      .x = exact.x,
      .codes = static_cast<int8_t*>(codes.data_ptr()),
      .groups = static_cast<Int8Group*>(groups.data_ptr()),
      .qweight = exact.qweight,
      .qparams = exact.qparams,
      .bias = exact.bias,
      .y = exact.y,
      .m = exact.m,
      .n = exact.n,
      .k = exact.k,
      .group_size = exact.group_size,
      .x_group = x_group,
      .half_scales = exact.half_scales,
      .dtype = exact.dtype,
  };
  const DeviceGuard guard(x.get_device());
  if (args.m > 0 && n > 0) backend::w4a8_linear(args, current_stream(x));
  return call.y;
}

}  // namespace tinyserve
