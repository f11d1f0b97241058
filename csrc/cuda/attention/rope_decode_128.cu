// rope_decode_128.cu — the kernels for heads of up to 128 elements that come unrotated: ../attention_kernel.cuh.
#include "../attention_kernel.cuh"

namespace tinyserve::cuda {

template void launch_rope_attention<128>(const RopePagedAttentionArgs& args, void* stream);
template int64_t attention_workspace<128, Phase::kRopeDecode>(const PagedAttentionArgs& args);

}  // namespace tinyserve::cuda
