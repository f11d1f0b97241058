// wgmma_half.cu — w4a16_gemm's wgmma kernels for fp16.
#include "../gemm_wgmma_launch.cuh"

namespace tinyserve::cuda {

template void wgmma_gemm<__half>(const W4A16Args& a, const StreamK& plan, void* stream);

}  // namespace tinyserve::cuda
