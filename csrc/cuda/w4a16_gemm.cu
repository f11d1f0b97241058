// w4a16_gemm.cu — y = x W^T for any number of rows: the choice among the kernels of gemm_config.h, and their start.
//
// Shapes: W4A16Args in kernels.h. The kernels: gemm_mma.cuh, gemm_wgmma.cuh. Twin: cpu/w4a16_gemm.cpp. Test:
// tests/kernels/test_w4a16_gemm.py.
#include "gemm_choice.h"
#include "gemm_launch.h"

namespace tinyserve::cuda {
namespace {

template <typename T>
void start(const W4A16Args& args, const StreamK& plan, void* stream) {
  switch (kGemmConfigs[args.config].kind) {
    case GemmKind::kMma:
      return mma_gemm<T>(args, plan, stream);
    case GemmKind::kWgmma:
      return wgmma_gemm<T>(args, plan, stream);
  }
}

}  // namespace

int gemm_configs() { return kNumGemmConfigs; }

const char* gemm_config_name(int config) {
  return fits(kGemmConfigs[config], current_device()) ? kGemmConfigs[config].name : nullptr;
}

int choose_gemm_config(const W4A16Args& args) { return choose_config(args, current_device()); }

int64_t gemm_workspace(const W4A16Args& args) {
  const GemmConfig& config = kGemmConfigs[args.config];
  return gemm_plan(args, config, current_device()).workspace(config.tile_m * config.cluster_n() / kItem);
}

void w4a16_gemm(const W4A16Args& args, void* stream) {
  const StreamK plan = gemm_plan(args, kGemmConfigs[args.config], current_device());
  switch (args.dtype) {
    case Dtype::kHalf:
      return start<__half>(args, plan, stream);
    case Dtype::kBFloat16:
      return start<__nv_bfloat16>(args, plan, stream);
    case Dtype::kFloat:
      throw std::invalid_argument("w4a16_gemm on CUDA takes float16 or bfloat16, got float32");
  }
}

}  // namespace tinyserve::cuda
