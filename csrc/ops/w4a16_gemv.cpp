// w4a16_gemv.cpp — the row limit, and who computes the norm of x: the kernel where it can, else rms_norm before it.
// The other checks are in w4a16.h, the arithmetic in cpu/ and cuda/.
#include "w4a16_run.h"

namespace tinyserve {

Tensor w4a16_gemv(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                  int64_t k, int64_t group_size, const OptionalTensor& residual, bool silu_mul,
                  const OptionalTensor& norm_weight, double eps) {
  W4A16Call call = prepare_w4a16(x, qweight, qparams, bias, n, k, group_size, residual, silu_mul);
  STD_TORCH_CHECK(call.args.m <= kGemvMaxRows, "w4a16_gemv takes up to ", kGemvMaxRows, " rows, got x ",
                  shape(x.sizes()));
  if (norm_weight) check_tensor(*norm_weight, "norm_weight", {k}, x.scalar_type(), x);
  const DeviceGuard guard(x.get_device());
  if (call.args.m == 0 || n == 0) return call.y;
  if (norm_weight) {
    call.args.norm_weight = norm_weight->data_ptr();
    call.args.eps = float(eps);
    if (!is_aligned(*norm_weight) || !backend::gemv_takes_norm(call.args)) {
      call.x = rms_norm(call.x, *norm_weight, eps, std::nullopt);
      call.args.x = call.x.data_ptr();
      call.args.norm_weight = nullptr;
    }
  }
  if (const int64_t floats = backend::gemv_workspace(call.args); floats > 0) {
    call.scratch = allocate(x, {floats}, ScalarType::Float);
    call.args.workspace = static_cast<float*>(call.scratch->data_ptr());
  }
  run_w4a16(backend::w4a16_gemv, call, x);
  return call.y;
}

}  // namespace tinyserve
