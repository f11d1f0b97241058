// rope_decode_64.cu — the kernels for heads of up to 64 elements that come unrotated: ../attention_kernel.cuh.
#include "../attention_kernel.cuh"

namespace tinyserve::cuda {

template void launch_rope_attention<64>(const RopePagedAttentionArgs& args, void* stream);
template int64_t attention_workspace<64, Phase::kRopeDecode>(const PagedAttentionArgs& args);

}  // namespace tinyserve::cuda
