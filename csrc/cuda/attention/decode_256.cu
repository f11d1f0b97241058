// decode_256.cu — the kernels for heads of up to 256 elements: ../attention_kernel.cuh.
#include "../attention_kernel.cuh"

namespace tinyserve::cuda {

template void launch_attention<256, Phase::kDecode>(const PagedAttentionArgs& args, QueryLimits limits, void* stream);
template int64_t attention_workspace<256, Phase::kDecode>(const PagedAttentionArgs& args);

}  // namespace tinyserve::cuda
