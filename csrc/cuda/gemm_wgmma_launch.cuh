// gemm_wgmma_launch.cuh — starts the wgmma kernel of a configuration. Compiled once for each dtype, in gemm/wgmma_*.cu,
// so that these compile side by side.
#pragma once

#include "gemm_launch.h"
#include "gemm_wgmma.cuh"
#include "tensor_map.h"

#include <utility>

namespace tinyserve::cuda {

template <typename T, int kIndex>
void start_wgmma_gemm(const W4A16Args& a, const StreamK& plan, void* stream) {
  constexpr GemmConfig kConfig = kGemmConfigs[kIndex];
  if constexpr (kConfig.kind == GemmKind::kWgmma) {
    launch_kernel(
        "w4a16_gemm", wgmma_gemm_kernel<T, kIndex>, dim3(plan.ctas * kConfig.cluster), dim3(kWgmmaThreads),
        WgmmaShape(kConfig).shared_bytes, stream, LaunchOptions{.cluster = kConfig.cluster, .dependent = true},
        tensor_map(a.x, a.m, a.k, kConfig.tile_m / kConfig.cluster), GemmProblem<T>(a, kConfig, plan, stream));
  }
}

template <typename T>
void wgmma_gemm(const W4A16Args& a, const StreamK& plan, void* stream) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    ((a.config == kIndices ? start_wgmma_gemm<T, kIndices>(a, plan, stream) : void()), ...);
  }(std::make_integer_sequence<int, kNumGemmConfigs>());
}

}  // namespace tinyserve::cuda
