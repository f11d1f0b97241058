// rope_paged_attention.cpp — one call for what are two kernels here: the queries between them stay in the cache.
#include "../kernels.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

void rope_kv_write(const RopeKvWriteArgs& args);
void paged_attention(const PagedAttentionArgs& args);

void rope_paged_attention(const RopePagedAttentionArgs& args) {
  rope_kv_write(args.rope);
  paged_attention(args.attention);
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
