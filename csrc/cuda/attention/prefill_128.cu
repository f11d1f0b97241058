// prefill_128.cu — the kernels for heads of up to 128 elements: ../attention_kernel.cuh.
#include "../attention_kernel.cuh"

namespace tinyserve::cuda {

template void launch_attention<128, Phase::kPrefill>(const PagedAttentionArgs& args, QueryLimits limits, void* stream);
template int64_t attention_workspace<128, Phase::kPrefill>(const PagedAttentionArgs& args);

}  // namespace tinyserve::cuda
