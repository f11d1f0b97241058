// w4a16_gemm.cpp — any number of rows; the checks are in w4a16.h, the arithmetic in cpu/ and cuda/.
#include "w4a16.h"

namespace tinyserve {

Tensor w4a16_gemm(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias,
                  int64_t n) {
  const W4A16Call call = prepare_w4a16(x, qweight, qparams, bias, n);
  const DeviceGuard guard(x.get_device());
  if (call.args.m > 0 && n > 0) backend::w4a16_gemm(call.args, current_stream(x));
  return call.y;
}

}  // namespace tinyserve
