// mma_bfloat16.cu — w4a16_gemm's mma kernels for bf16.
#include "../gemm_mma_launch.cuh"

namespace tinyserve::cuda {

template void mma_gemm<__nv_bfloat16>(const W4A16Args& a, const StreamK& plan, void* stream);

}  // namespace tinyserve::cuda
