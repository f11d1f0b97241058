// w4a16_gemm.cpp — any number of rows, and on CUDA the choice of a configuration; the checks are in w4a16.h, the
// arithmetic in cpu/ and cuda/.
#include "w4a16_run.h"

namespace tinyserve {

Tensor w4a16_gemm(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                  int64_t k, int64_t group_size, const OptionalTensor& residual, bool silu_mul, int64_t config) {
  W4A16Call call = prepare_w4a16(x, qweight, qparams, bias, n, k, group_size, residual, silu_mul);
  const DeviceGuard guard(x.get_device());
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
  STD_TORCH_CHECK(-1 <= config && config < cuda::gemm_configs(), "config must be -1..", cuda::gemm_configs() - 1,
                  ", got ", config);
  STD_TORCH_CHECK(config < 0 || cuda::gemm_config_name(int(config)) != nullptr, "config ", config,
                  " does not run on this device");
  if (call.args.m == 0 || n == 0) return call.y;
  call.args.config = config < 0 ? cuda::choose_gemm_config(call.args) : int(config);
  STD_TORCH_CHECK(call.args.config >= 0, "w4a16_gemm needs a GPU of compute capability 8.0 or above");
  const Tensor workspace = allocate(x, {cuda::gemm_workspace(call.args)}, ScalarType::Float);
  call.args.workspace = static_cast<float*>(workspace.data_ptr());
#else
  STD_TORCH_CHECK(config == -1, "the CPU's w4a16_gemm has no configurations, got config=", config);
  if (call.args.m == 0 || n == 0) return call.y;
#endif
  run_w4a16(backend::w4a16_gemm, call, x);
  return call.y;
}

std::string w4a16_gemm_configs([[maybe_unused]] const Tensor& like) {
  std::string names;
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
  const DeviceGuard guard(like.get_device());
  for (int config = 0; config < cuda::gemm_configs(); ++config) {
    if (const char* name = cuda::gemm_config_name(config)) names += std::to_string(config) + " " + name + "\n";
  }
#endif
  return names;
}

}  // namespace tinyserve
