// kernels.h — what a backend must provide: one args struct and one entry per op. No Torch here.
//
// Sizes are checked by ops/<op>.cpp before a kernel sees them; every tensor is contiguous unless a stride says
// otherwise. An op starts with its args struct and, once its files exist, its line in TINYSERVE_CPU_KERNELS or
// TINYSERVE_CUDA_KERNELS.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace tinyserve {

enum class Dtype { kFloat, kHalf, kBFloat16 };  // of activations; sums are always fp32

// Of the elements of a KV cache. Those of 8 bits have a scale for every head of a token: its largest |element| over the
// largest code, 127 for int8, 448 for float8 (e4m3, which the CPU has no kernel for).
enum class CacheDtype { kActivations, kInt8, kFloat8 };

constexpr int kMaxHeadDim = 256;

constexpr int kGemvMaxRows = 8;  // w4a16_gemv takes this many rows; above, w4a16_gemm is faster

// How the CPU packs a quantized weight [N, K], the same for all of its kernels:
//   qweight: uint32 [N/32 up][K/8][32]. A word holds 8 consecutive k of one row n, the first in its lowest 4 bits. A
//     tile of 32 rows is one stream, read front to back. (The low halves of a word's bytes are 4 k that int8 dot
//     products take at once, the high halves the other 4.) Rows past N have code 0.
//   qparams: bytes [N/32 up][K/G][96 or 160]: the 32 scales of a group as fp16 (where they came as fp16) or else fp32,
//     then the 32 zeros as uint8. Rows past N have scale 0.
constexpr int kPackColumns = 32;                    // rows n of one tile
constexpr int kPackFactor = 8;                      // codes in one word
constexpr int kParamBytesHalf = kPackColumns * 3;   // of one group of a tile, with fp16 scales
constexpr int kParamBytesFloat = kPackColumns * 5;  // with fp32 scales

// How CUDA packs it, the same for all of its kernels, for activations of fp16 or of bf16. N and K are padded to whole
// blocks of 64:
//   qweight: uint32 [N/64 up][K/64 up][4][32][4]. A block of 64 n x 64 k is 2048 consecutive bytes: 4 tiles of 16 n, in
//     each 32 lanes, and for each lane one word for every 16 k: its part of a 16 n x 16 k operand of the tensor cores.
//     With r = lane / 4 and c = lane % 4 * 2, the half2 a0 = (r, c..c+1), a1 = (r + 8, c..c+1), a2 = (r, c + 8..c + 9),
//     a3 = (r + 8, c + 8..c + 9); a_i is in nibbles i and i + 4 of the word, counted from its lowest 4 bits. Codes past
//     N and K are 0.
//   qparams: [N/64 up][padded K/G up][4][8][2][2], of the activations' dtype: in a tile of 16 n, those of row r beside
//     those of r + 8, so that a lane reads both at once; of each row the scale, then the bits of the zero as an integer
//     (uint32: the scale in the low half, the zero in the high half). Rows past N and groups past K/G have scale 0 and
//     zero 0.
namespace cuda {
constexpr int kPackBlock = 64;  // rows n and columns k
constexpr int kMaxZero = 63;    // the largest that the kernels subtract exactly
}  // namespace cuda

struct W4A16PackArgs {
  const uint8_t* codes;  // [N, K] 0..15
  const void* scales;    // [N, K/G] scale_dtype
  const uint8_t* zeros;  // [N, K/G]
  uint32_t* qweight;     // out, see above
  uint8_t* qparams;      // out, see above
  int32_t* faults;       // out: [kPackFaults] zeros; the kernel makes those of the faults it finds one
  int64_t n, k, group_size;
  Dtype scale_dtype, kept_dtype;  // of the scales, given and in qparams
};

enum PackFault {
  kCodeFault,   // a code above 15
  kScaleFault,  // on CUDA: a scale that is not finite in the dtype that is kept
  kZeroFault,   // on CUDA: a zero above kMaxZero
  kPackFaults
};

// weight[n, k] = (code[n, k] - zero[n, k/G]) * scale[n, k/G], rounded once
struct W4A16DequantizeArgs {
  const uint32_t* qweight;  // packed, see above
  const uint8_t* qparams;
  void* weight;  // out [N, K] dtype
  int64_t n, k, group_size;
  Dtype scale_dtype, dtype;  // of the scales in qparams, of the result
};

// y[m, n] = bias[n] + sum over k of x[m, k] * (code[n, k] - zero[n, k/G]) * scale[n, k/G] + residual[m, n]
//
// With silu_mul the weight's rows come in tiles of 16, 8 of the gate and then 8 of the up projection, and
// y [M, N/2] = silu(gate) * up + residual. The kernels of the CPU know neither; ops/w4a16_run.h adds both to their
// result. With norm_weight, which w4a16_gemv alone takes, x becomes its RMSNorm first, as in RmsNormArgs.
struct W4A16Args {
  const void* x;            // [M, K] dtype
  float* scratch;           // [M, K], where x becomes fp32; null if it is
  const uint32_t* qweight;  // packed, see above
  const uint8_t* qparams;
  const void* bias;      // [N] dtype, or null
  const void* residual;  // of y's shape, dtype; or null
  void* y;               // [M, N] dtype; with silu_mul [M, N/2]
  int64_t m, n, k, group_size;
  bool half_scales;  // fp16 scales in qparams, else fp32
  bool silu_mul;
  Dtype dtype;
  int config;               // of w4a16_gemm on CUDA: a row of kGemmConfigs in cuda/gemm_config.h
  float* workspace;         // on CUDA: gemm_workspace(args) or gemv_workspace(args) floats, where parts of a sum meet
  const void* norm_weight;  // [K] dtype, or null; where gemv_takes_norm(args). No kernel before may have written it.
  float eps;                // of the norm
};

// Products of int8 activations are as in W4A16Args, but x is rounded in groups of a row, with a scale of a group's
// largest |x| over 127, so that products and sums inside a group are integers. With 4-bit weights a group of x is 128,
// 64 or 32 long, the first of them that divides G.
constexpr int64_t int8_group(int64_t group_size) {
  return group_size % 128 == 0 ? 128 : group_size % 64 == 0 ? 64 : 32;
}
struct Int8Group {
  float scale;
  int32_t sum;  // of the codes
};

// With 8-bit weights it is as long as theirs.
constexpr int64_t kInt8Group = 64;

// How the CPU packs a weight [N, K] in 8 bits, w = (code - 128) * scale with a scale of the largest |w| of a group over
// 127, G = kInt8Group where that divides K, else 32:
//   qweight: uint32 [N/32 up][K/8][2][32]. Of 8 consecutive k of a row, the first word holds the even ones, the second
//     the odd ones, the lowest k in the lowest byte. Rows past N have code 128.
//   scales: fp32 [N/32 up][K/G][32]. Rows past N have scale 0.
constexpr int kMiddleCode = 128;

struct W8PackArgs {
  const void* weight;  // [N, K] dtype
  uint32_t* qweight;   // out, see above
  float* scales;       // out, see above
  int64_t n, k, group_size;
  Dtype dtype;
};

// y[t, k] = (code[rows[t], k] - 128) * scale[rows[t], k/G] of such a weight
struct W8EmbeddingArgs {
  const int32_t* rows;      // [T], 0..N-1
  const uint32_t* qweight;  // packed, see above
  const float* scales;      // see above
  void* y;                  // [T, K] dtype
  int64_t tokens, k, group_size;
  Dtype dtype;
};

// y[t, c] = weight[rows[t], c]
struct EmbeddingArgs {
  const int32_t* rows;  // [T], 0..V-1
  const void* weight;   // [V, C]
  void* y;              // [T, C]
  int64_t tokens, row_bytes;
};

// Of w4a8_linear and w8a8_linear
struct Int8LinearArgs {
  const void* x;            // [M, K] dtype
  int8_t* codes;            // scratch [M * K], x rounded in groups of A = x_group
  Int8Group* groups;        // scratch [M * K/A]
  const uint32_t* qweight;  // packed, see above
  const void* qparams;      // those of 4 bits, or the scales of 8 bits
  const void* bias;         // [N] dtype, or null
  void* y;                  // [M, N] dtype
  int64_t m, n, k, group_size, x_group;
  bool half_scales;  // of 4 bits: fp16 scales in qparams, else fp32
  Dtype dtype;
};

// y[m, n] = bias[n] + sum over k of x[m, k] * weight[n, k]
struct LinearArgs {
  const void* x;       // [M, K] dtype
  float* scratch;      // [M, K], where x becomes fp32; null if it is
  const void* weight;  // [N, K] dtype
  const void* bias;    // [N] dtype, or null
  void* y;             // [M, N] dtype
  int64_t m, n, k;
  Dtype dtype;
};

// y[t, c] = h[t, c] * weight[c] / sqrt(mean over c of h[t, c]^2 + eps), where h = x, or x + residual, then stored
struct RmsNormArgs {
  const void* x;       // [T, C] dtype
  const void* weight;  // [C]    dtype
  void* residual;      // [T, C] dtype, read and written; or null
  void* y;             // [T, C] dtype
  int64_t tokens, channels;
  float eps;
  Dtype dtype;
};

// y[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i]
struct SiluMulArgs {
  const void* gate_up;   // [T, 2 * I] dtype
  void* y;               // [T, I]     dtype
  int64_t tokens, size;  // T, I
  Dtype dtype;
};

// In a block of keys [S, D] of one head, how many elements lie between a key and the next, and between a channel and
// the next: D and 1, or 1 and S. With the latter a CPU's attention has a vector of keys for each channel as it is.
struct KeyStrides {
  int64_t key, channel;
};

// Rotates q and k by their positions, in pairs (i, i + R/2) of the first R elements of a head; writes k and v to the
// cache. A NaN or infinity makes the scale of its head NaN.
struct RopeKvWriteArgs {
  const void* qkv;           // [T, (H + 2 * Hkv) * D] dtype
  const int32_t* positions;  // [T] rows of cos_sin
  const float* cos_sin;      // [P, R] cos in the first half of a row, sin in the second
  const int32_t* slots;      // [T] block * S + offset; -1: not written
  void* k_cache;             // [blocks, Hkv, S, D] cache_dtype, on a CPU with these strides
  void* v_cache;             // [blocks, Hkv, S, D] cache_dtype
  float* k_scales;           // [blocks, Hkv, S]; null for a cache of the activations' dtype
  float* v_scales;           // as k_scales
  void* q;                   // out [T, H, D] dtype
  int64_t tokens, num_heads, num_kv_heads, head_dim, rotary_dim, block_size;
  KeyStrides key_strides;
  Dtype dtype;
  CacheDtype cache_dtype;
};

// Causal attention of a mixed batch over the paged cache. Query i of request b sits at position context_lens[b] - q_len
// + i. A score is scale * q.k, then soft_cap * tanh(score / soft_cap), then plus alibi_slopes[h] * (key's position -
// query's).
struct PagedAttentionArgs {
  const void* q;                // [T, H, D] dtype
  const void* k_cache;          // [blocks, Hkv, S, D] cache_dtype, on a CPU with these strides
  const void* v_cache;          // [blocks, Hkv, S, D] cache_dtype
  const float* k_scales;        // [blocks, Hkv, S]; null for a cache of the activations' dtype
  const float* v_scales;        // as k_scales
  const int32_t* block_tables;  // [B, max_blocks]
  const int32_t* query_starts;  // [B + 1] first row of q of each request
  const int32_t* context_lens;  // [B] tokens in the cache, the queries' own included
  const float* alibi_slopes;    // [H], or null
  float* workspace;             // of CUDA: paged_attention_workspace(args) floats, where parts of a row meet
  void* y;                      // [T, H, D] dtype
  int64_t tokens, num_requests, max_blocks, num_heads, num_kv_heads, head_dim, block_size;
  KeyStrides key_strides;
  int64_t window;  // keys that a query sees, its own included; 0: all
  float scale;
  float soft_cap;  // 0: none
  Dtype dtype;
  CacheDtype cache_dtype;
};

// y[t, c] = (h[t, c] - mean) / sqrt(variance + eps) * weight[c] + bias[c], mean and variance over the c of h[t, c] = x,
// or x + residual, then stored
struct LayerNormArgs {
  const void* x;       // [T, C] dtype
  const void* weight;  // [C]    dtype
  const void* bias;    // [C]    dtype, or null
  void* residual;      // [T, C] dtype, read and written; or null
  void* y;             // [T, C] dtype
  int64_t tokens, channels;
  float eps;
  Dtype dtype;
};

// A token for each row, drawn from softmax(logits / temperature) after top_k, then top_p of what that has left, then
// min_p: see cuda/sample.cu. -1 where the largest logit is NaN or infinite.
struct SampleArgs {
  const void* logits;        // [R, V] dtype
  const float* temperature;  // [R]; below kGreedyTemperature: the likeliest token
  const int32_t* top_k;      // [R]; 1: the likeliest token; 0 and less, V and more: all
  const float* top_p;        // [R]; below kGreedyTopP: the likeliest token; 1: all
  const float* min_p;        // [R]; 0: all
  const double* uniform;     // [R] in [0, 1), what decides
  int32_t* tokens;           // out [R]
  int64_t rows, vocab_size;
  Dtype dtype;
};
constexpr float kGreedyTemperature = 1e-3f;
constexpr float kGreedyTopP = 1e-8f;
constexpr int64_t kMaxVocab = 1 << 18;  // of sample, whose sums of weights then fit 64 bits

// rope_kv_write and then paged_attention of a batch whose requests have one query each.
struct RopePagedAttentionArgs {
  RopeKvWriteArgs rope;          // its q may be null where cuda::fuses_rope()
  PagedAttentionArgs attention;  // of the same q and the same caches
};

// The ops that each backend has: X(op, args struct). A line here, ops/<op>.cpp, cpu/<op>.cpp (cuda/<op>.cu), a line in
// bindings.cpp.
#define TINYSERVE_CPU_KERNELS(X)           \
  X(w4a16_pack, W4A16PackArgs)             \
  X(w4a16_dequantize, W4A16DequantizeArgs) \
  X(w4a16_gemv, W4A16Args)                 \
  X(w4a16_gemm, W4A16Args)                 \
  X(w8_pack, W8PackArgs)                   \
  X(w8_embedding, W8EmbeddingArgs)         \
  X(embedding, EmbeddingArgs)              \
  X(w4a8_linear, Int8LinearArgs)           \
  X(w8a8_linear, Int8LinearArgs)           \
  X(linear, LinearArgs)                    \
  X(rms_norm, RmsNormArgs)                 \
  X(silu_mul, SiluMulArgs)                 \
  X(rope_kv_write, RopeKvWriteArgs)        \
  X(paged_attention, PagedAttentionArgs)   \
  X(layer_norm, LayerNormArgs)             \
  X(rope_paged_attention, RopePagedAttentionArgs)
#define TINYSERVE_CUDA_KERNELS(X)          \
  X(w4a16_pack, W4A16PackArgs)             \
  X(w4a16_dequantize, W4A16DequantizeArgs) \
  X(w4a16_gemv, W4A16Args)                 \
  X(w4a16_gemm, W4A16Args)                 \
  X(rms_norm, RmsNormArgs)                 \
  X(silu_mul, SiluMulArgs)                 \
  X(rope_kv_write, RopeKvWriteArgs)        \
  X(paged_attention, PagedAttentionArgs)   \
  X(layer_norm, LayerNormArgs)             \
  X(sample, SampleArgs)                    \
  X(rope_paged_attention, RopePagedAttentionArgs)

// Both backends answer to the same calls; the CPU ignores the stream.
#define TINYSERVE_DECLARE(op, Args) void op(const Args& args, void* stream);
namespace cpu {
TINYSERVE_CPU_KERNELS(TINYSERVE_DECLARE)
}
namespace cuda {
TINYSERVE_CUDA_KERNELS(TINYSERVE_DECLARE)

// What w4a16_gemm can run on the current device: the number of configurations that were compiled, the name of one or
// null where it does not fit this device, the one that suits a shape, and the floats it needs as a workspace.
int gemm_configs();
const char* gemm_config_name(int config);
int choose_gemm_config(const W4A16Args& args);
int64_t gemm_workspace(const W4A16Args& args);
int64_t gemv_workspace(const W4A16Args& args);  // floats that w4a16_gemv needs
bool gemv_takes_norm(const W4A16Args& args);    // whether it has room to compute x's norm itself

int64_t paged_attention_workspace(const PagedAttentionArgs& args);  // floats
int64_t rope_paged_attention_workspace(const RopePagedAttentionArgs& args);
bool fuses_rope(const RopeKvWriteArgs& args);  // whether rope_paged_attention is one kernel; otherwise it is two
}  // namespace cuda
#undef TINYSERVE_DECLARE

namespace cpu {

inline int64_t gemv_workspace(const W4A16Args&) { return 0; }
inline bool gemv_takes_norm(const W4A16Args&) { return false; }
inline bool fuses_rope(const RopeKvWriteArgs&) { return false; }

// Every cpu/<op>.cpp is compiled once per instruction set, into a namespace of its name; this is one compilation's
// kernels.
struct Table {
  const char* isa;
#define TINYSERVE_MEMBER(op, Args) void (*op)(const Args& args);
  TINYSERVE_CPU_KERNELS(TINYSERVE_MEMBER)
#undef TINYSERVE_MEMBER
};

// The name of the instruction set in use. The best that this machine has, unless TINYSERVE_CPU_ISA or select_isa() said
// otherwise. Throws std::invalid_argument for a name that is not compiled in or that this machine does not have.
const char* current_isa();
void select_isa(const char* name);

// Between the two, every call of a kernel is counted and timed; the latter returns "name calls nanoseconds" lines.
void start_profile();
std::string end_profile();

// Work that is done and, while this thread records, also kept, to be done again on the same memory.
using Calls = std::vector<std::function<void()>>;
void record_to(Calls* calls);  // from now on, in this thread; null: no longer
void run_recorded(const std::function<void()>& work);

// Calls body(begin, end, context) for parts of [0, size), on as many threads as torch is set to use; parts are about
// `grain` long or longer. A body must not throw. Defined in ops/parallel.cpp, upon run_on_pool of pool.cpp.
using ParallelBody = void(int64_t begin, int64_t end, void* context);
void run_parallel(int64_t size, int64_t grain, ParallelBody* body, void* context);
void run_on_pool(int threads, int64_t size, int64_t grain, ParallelBody* body, void* context);

// The same for a lambda: parallel_for(size, grain, [&](int64_t begin, int64_t end) { ... }).
template <typename Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  run_parallel(
      size, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace cpu
}  // namespace tinyserve
