// wgmma_bfloat16.cu — w4a16_gemm's wgmma kernels for bf16.
#include "../gemm_wgmma_launch.cuh"

namespace tinyserve::cuda {

template void wgmma_gemm<__nv_bfloat16>(const W4A16Args& a, const StreamK& plan, void* stream);

}  // namespace tinyserve::cuda
