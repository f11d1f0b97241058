// w4a16_dequantize.cpp — checks and allocation; the layouts are in kernels.h, the work in cpu/ and cuda/.
#include "packed.h"

namespace tinyserve {

Tensor w4a16_dequantize(const Tensor& qweight, const Tensor& qparams, int64_t n, int64_t k, int64_t group_size,
                        ScalarType dtype) {
  check_packed(qweight, qparams, n, k, group_size, qweight);
  const Dtype result = to_dtype(dtype, "dtype");
  const DeviceGuard guard(qweight.get_device());
  Tensor weight = allocate(qweight, {n, k}, dtype);
  const W4A16DequantizeArgs args{
      .qweight = static_cast<const uint32_t*>(qweight.data_ptr()),
      .qparams = static_cast<const uint8_t*>(qparams.data_ptr()),
      .weight = weight.data_ptr(),
      .n = n,
      .k = k,
      .group_size = group_size,
      .scale_dtype = to_dtype(backend::kept_scales(qparams), "scales"),
      .dtype = result,
  };
  if (n > 0) backend::w4a16_dequantize(args, current_stream(qweight));
  return weight;
}

}  // namespace tinyserve
