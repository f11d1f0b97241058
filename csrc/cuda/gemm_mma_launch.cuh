// gemm_mma_launch.cuh — starts the mma kernel of a configuration. Compiled once for each dtype, in gemm/mma_*.cu, so
// that these compile side by side.
#pragma once

#include "gemm_launch.h"
#include "gemm_mma.cuh"

#include <utility>

namespace tinyserve::cuda {

template <typename T, int kIndex>
void start_mma_gemm(const W4A16Args& a, const StreamK& plan, void* stream) {
  constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  if constexpr (kConfig.kind == GemmKind::kMma) {
    launch_kernel("w4a16_gemm", mma_gemm_kernel<T, kIndex>, dim3(plan.ctas), dim3(MmaShape(kConfig).threads),
                  gemm_shared_bytes(kConfig), stream, LaunchOptions{.cluster = 1, .dependent = true},
                  GemmProblem<T>(a, kConfig, plan, stream));
  }
}

template <typename T>
void mma_gemm(const W4A16Args& a, const StreamK& plan, void* stream) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    ((a.config == kIndices ? start_mma_gemm<T, kIndices>(a, plan, stream) : void()), ...);
  }(std::make_integer_sequence<int, kNumGemmConfigs>());
}

}  // namespace tinyserve::cuda
