// bindings.cpp — the only file that registers ops. A schema is written once; each backend library adds the kernels it
// has.
//
// A new op: its schema here, its kernel lines below, its declaration in ops/ops.h, its lines in kernels.h.
#include "ops/ops.h"

#include <torch/csrc/stable/library.h>

#define TINYSERVE_SCHEMAS(m)                                                                                  \
  m.def(                                                                                                      \
      "w4a16_pack(Tensor codes, Tensor scales, Tensor zeros, ScalarType? dtype=None) -> "                     \
      "(Tensor, Tensor)");                                                                                    \
  m.def(                                                                                                      \
      "w4a16_dequantize(Tensor qweight, Tensor qparams, int n, int k, int group_size, ScalarType dtype) "     \
      "-> Tensor");                                                                                           \
  m.def(                                                                                                      \
      "w4a16_gemv(Tensor x, Tensor qweight, Tensor qparams, Tensor? bias, int n, int k, int group_size, "     \
      "Tensor? residual=None, bool silu_mul=False, Tensor? norm_weight=None, float eps=0) -> Tensor");        \
  m.def(                                                                                                      \
      "w4a16_gemm(Tensor x, Tensor qweight, Tensor qparams, Tensor? bias, int n, int k, int group_size, "     \
      "Tensor? residual=None, bool silu_mul=False, int config=-1) -> Tensor");                                \
  m.def("w4a16_gemm_configs(Tensor like) -> str");                                                            \
  m.def(                                                                                                      \
      "w4a8_linear(Tensor x, Tensor qweight, Tensor qparams, Tensor? bias, int n, int k, int group_size) "    \
      "-> Tensor");                                                                                           \
  m.def("w8_pack(Tensor weight) -> (Tensor, Tensor)");                                                        \
  m.def("embedding(Tensor rows, Tensor weight) -> Tensor");                                                   \
  m.def("w8_embedding(Tensor rows, Tensor qweight, Tensor scales, int n, ScalarType dtype) -> Tensor");       \
  m.def("w8a8_linear(Tensor x, Tensor qweight, Tensor scales, Tensor? bias, int n) -> Tensor");               \
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");                                      \
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!)? residual=None) -> Tensor");                 \
  m.def("silu_mul(Tensor gate_up) -> Tensor");                                                                \
  m.def(                                                                                                      \
      "rope_kv_write(Tensor qkv, Tensor positions, Tensor cos_sin, Tensor slots, Tensor(a!) k_cache, "        \
      "Tensor(b!) v_cache, int num_heads, Tensor(c!)? k_scales=None, Tensor(d!)? v_scales=None) -> Tensor");  \
  m.def(                                                                                                      \
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables, Tensor query_starts, "  \
      "Tensor context_lens, float scale, Tensor? k_scales=None, Tensor? v_scales=None, int window=0, "        \
      "float soft_cap=0.0, Tensor? alibi_slopes=None) -> Tensor");                                            \
  m.def(                                                                                                      \
      "rope_paged_attention(Tensor qkv, Tensor positions, Tensor cos_sin, Tensor slots, Tensor(a!) "          \
      "k_cache, Tensor(b!) v_cache, Tensor block_tables, Tensor query_starts, Tensor context_lens, "          \
      "int num_heads, float scale, Tensor(c!)? k_scales=None, Tensor(d!)? v_scales=None, int window=0, "      \
      "float soft_cap=0.0, Tensor? alibi_slopes=None) -> Tensor");                                            \
  m.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps, Tensor(a!)? residual=None) -> Tensor"); \
  m.def(                                                                                                      \
      "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor uniform) "  \
      "-> Tensor")

// The ops with a kernel for CUDA, which the emulated library has too.
#define TINYSERVE_CUDA_OPS(m)                                              \
  m.impl("w4a16_pack", TORCH_BOX(&tinyserve::w4a16_pack));                 \
  m.impl("w4a16_dequantize", TORCH_BOX(&tinyserve::w4a16_dequantize));     \
  m.impl("w4a16_gemv", TORCH_BOX(&tinyserve::w4a16_gemv));                 \
  m.impl("w4a16_gemm", TORCH_BOX(&tinyserve::w4a16_gemm));                 \
  m.impl("w4a16_gemm_configs", TORCH_BOX(&tinyserve::w4a16_gemm_configs)); \
  m.impl("rms_norm", TORCH_BOX(&tinyserve::rms_norm));                     \
  m.impl("silu_mul", TORCH_BOX(&tinyserve::silu_mul));                     \
  m.impl("rope_kv_write", TORCH_BOX(&tinyserve::rope_kv_write));           \
  m.impl("paged_attention", TORCH_BOX(&tinyserve::paged_attention));       \
  m.impl("layer_norm", TORCH_BOX(&tinyserve::layer_norm));                 \
  m.impl("sample", TORCH_BOX(&tinyserve::sample));                         \
  m.impl("rope_paged_attention", TORCH_BOX(&tinyserve::rope_paged_attention))

#if defined(TINYSERVE_CUDA)

STABLE_TORCH_LIBRARY_IMPL(tinyserve, CUDA, m) { TINYSERVE_CUDA_OPS(m); }

#elif defined(TINYSERVE_EMULATED)

STABLE_TORCH_LIBRARY(tinyserve_emulated, m) { TINYSERVE_SCHEMAS(m); }

STABLE_TORCH_LIBRARY_IMPL(tinyserve_emulated, CPU, m) { TINYSERVE_CUDA_OPS(m); }

#else

STABLE_TORCH_LIBRARY(tinyserve, m) {
  TINYSERVE_SCHEMAS(m);
  m.def("cpu_isa(str name=\"\") -> str");   // the instruction set in use; a name selects another
  m.def("cpu_profile(bool start) -> str");  // what the kernels took since it was last started
  // This thread's calls of kernels are kept, and what they work on lies in `memory`, until the end. Then they can be
  // made again by the number that it returns.
  m.def("tape_start(Tensor memory) -> ()");
  m.def("tape_end() -> int");
  m.def("tape_replay(int tape) -> ()");
  m.def("tape_drop(int tape) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tinyserve, CPU, m) {
  m.impl("w4a16_pack", TORCH_BOX(&tinyserve::w4a16_pack));
  m.impl("w4a16_dequantize", TORCH_BOX(&tinyserve::w4a16_dequantize));
  m.impl("w4a16_gemv", TORCH_BOX(&tinyserve::w4a16_gemv));
  m.impl("w4a16_gemm", TORCH_BOX(&tinyserve::w4a16_gemm));
  m.impl("w4a16_gemm_configs", TORCH_BOX(&tinyserve::w4a16_gemm_configs));
  m.impl("w4a8_linear", TORCH_BOX(&tinyserve::w4a8_linear));
  m.impl("w8_pack", TORCH_BOX(&tinyserve::w8_pack));
  m.impl("embedding", TORCH_BOX(&tinyserve::embedding));
  m.impl("w8_embedding", TORCH_BOX(&tinyserve::w8_embedding));
  m.impl("w8a8_linear", TORCH_BOX(&tinyserve::w8a8_linear));
  m.impl("linear", TORCH_BOX(&tinyserve::linear));
  m.impl("rms_norm", TORCH_BOX(&tinyserve::rms_norm));
  m.impl("silu_mul", TORCH_BOX(&tinyserve::silu_mul));
  m.impl("rope_kv_write", TORCH_BOX(&tinyserve::rope_kv_write));
  m.impl("paged_attention", TORCH_BOX(&tinyserve::paged_attention));
  m.impl("layer_norm", TORCH_BOX(&tinyserve::layer_norm));
  m.impl("rope_paged_attention", TORCH_BOX(&tinyserve::rope_paged_attention));
}

STABLE_TORCH_LIBRARY_IMPL(tinyserve, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&tinyserve::cpu_isa));
  m.impl("cpu_profile", TORCH_BOX(&tinyserve::cpu_profile));
  m.impl("tape_start", TORCH_BOX(&tinyserve::tape_start));
  m.impl("tape_end", TORCH_BOX(&tinyserve::tape_end));
  m.impl("tape_replay", TORCH_BOX(&tinyserve::tape_replay));
  m.impl("tape_drop", TORCH_BOX(&tinyserve::tape_drop));
}

#endif
