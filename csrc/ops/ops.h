// ops.h — the Tensor-level functions that bindings.cpp registers. Shapes and meaning: kernels.h and tinyserve/ops.py.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>

namespace tinyserve {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> w4a16_pack(const Tensor& codes, const Tensor& scales, const Tensor& zeros,
                                      std::optional<torch::headeronly::ScalarType> dtype);
Tensor w4a16_dequantize(const Tensor& qweight, const Tensor& qparams, int64_t n, int64_t k, int64_t group_size,
                        torch::headeronly::ScalarType dtype);
Tensor w4a16_gemv(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                  int64_t k, int64_t group_size, const OptionalTensor& residual, bool silu_mul,
                  const OptionalTensor& norm_weight, double eps);
Tensor w4a16_gemm(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                  int64_t k, int64_t group_size, const OptionalTensor& residual, bool silu_mul, int64_t config);
std::string w4a16_gemm_configs(const Tensor& like);
Tensor w4a8_linear(const Tensor& x, const Tensor& qweight, const Tensor& qparams, const OptionalTensor& bias, int64_t n,
                   int64_t k, int64_t group_size);
std::tuple<Tensor, Tensor> w8_pack(const Tensor& weight);
Tensor embedding(const Tensor& rows, const Tensor& weight);
Tensor w8_embedding(const Tensor& rows, const Tensor& qweight, const Tensor& scales, int64_t n,
                    torch::headeronly::ScalarType dtype);
Tensor w8a8_linear(const Tensor& x, const Tensor& qweight, const Tensor& scales, const OptionalTensor& bias, int64_t n);
Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, const OptionalTensor& residual);
Tensor silu_mul(const Tensor& gate_up);
Tensor rope_kv_write(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const Tensor& slots,
                     const Tensor& k_cache, const Tensor& v_cache, int64_t num_heads, const OptionalTensor& k_scales,
                     const OptionalTensor& v_scales);
Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_tables,
                       const Tensor& query_starts, const Tensor& context_lens, double scale,
                       const OptionalTensor& k_scales, const OptionalTensor& v_scales, int64_t window, double soft_cap,
                       const OptionalTensor& alibi_slopes);
Tensor layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                  const OptionalTensor& residual);
Tensor sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
              const Tensor& min_p, const Tensor& uniform);
Tensor rope_paged_attention(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin, const Tensor& slots,
                            const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_tables,
                            const Tensor& query_starts, const Tensor& context_lens, int64_t num_heads, double scale,
                            const OptionalTensor& k_scales, const OptionalTensor& v_scales, int64_t window,
                            double soft_cap, const OptionalTensor& alibi_slopes);
std::string cpu_isa(const std::string& name);
std::string cpu_profile(bool start);
void tape_start(const Tensor& memory);
int64_t tape_end();
void tape_replay(int64_t tape);
void tape_drop(int64_t tape);

}  // namespace tinyserve
