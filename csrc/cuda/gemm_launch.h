// gemm_launch.h — the kernels behind w4a16_gemm, by kind: each starts the one of a.config.
#pragma once

#include "../kernels.h"
#include "stream_k.cuh"

namespace tinyserve::cuda {

template <typename T>
void mma_gemm(const W4A16Args& a, const StreamK& plan, void* stream);  // gemm/mma_*.cu
template <typename T>
void wgmma_gemm(const W4A16Args& a, const StreamK& plan, void* stream);  // gemm/wgmma_*.cu

}  // namespace tinyserve::cuda
