// mma_half.cu — w4a16_gemm's mma kernels for fp16.
#include "../gemm_mma_launch.cuh"

namespace tinyserve::cuda {

template void mma_gemm<__half>(const W4A16Args& a, const StreamK& plan, void* stream);

}  // namespace tinyserve::cuda
