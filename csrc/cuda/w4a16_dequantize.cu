// w4a16_dequantize.cu — the weight [N, K] that a packed one stands for, for products that have no kernel of their own.
//
// A thread reads the 16 bytes of a lane, 16 codes of each of two rows, and their params once per 32 k, the smallest
// group. Products in fp32, where they are exact, rounded once. Twin: cpu/w4a16_dequantize.cpp. Test:
// tests/kernels/test_w4a16_dequantize.py.
#include "launch.cuh"
#include "packed.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSmallestGroup = 32;

template <typename T, typename Out>
__device__ void store_pair(Out* weight, uint32_t pair, float scale, int64_t row, int64_t column, int64_t n, int64_t k) {
  if (row >= n || column >= k) return;
  const Pair<T> values = as_pair<T>(pair);
  weight[row * k + column] = Out(float(values.x) * scale);
  weight[row * k + column + 1] = Out(float(values.y) * scale);
}

template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    w4a16_dequantize_kernel(const uint4* qweight, const uint2* qparams, Out* weight, int64_t n, int64_t k,
                            int64_t group_size, int64_t groups_up, int64_t lanes) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= lanes) return;
  const int64_t blocks_k = (k + kPackBlock - 1) / kPackBlock, block = at / 128, block_n = block / blocks_k;
  const int tile = at / 32 % 4, lane = at % 32;
  const int64_t row = block_n * kPackBlock + tile * kTile + lane / 4;
  const int64_t first = block % blocks_k * kPackBlock;
  const uint4 bits = qweight[at];
  const uint32_t words[kTileWords] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < kTileWords; i += kSmallestGroup / kTile) {
    const int64_t group = (first + i * kTile) / group_size;
    const uint2 params = qparams[(block_n * groups_up + group) * (kPackBlock / 2) + tile * 8 + lane / 4];
    const RowParams<T> rows(params);
    const float scales[2] = {scale_of<T>(params.x), scale_of<T>(params.y)};
#pragma unroll
    for (int w = i; w < i + kSmallestGroup / kTile; ++w) {
      uint32_t a[4];
      dequantize<T>(a, words[w], rows);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        store_pair<T>(weight, a[j], scales[j % 2], row + j % 2 * 8, first + w * kTile + lane % 4 * 2 + j / 2 * 8, n, k);
    }
  }
}

template <typename T, typename Out>
void launch(const W4A16DequantizeArgs& a, void* stream) {
  const int64_t blocks_n = (a.n + kPackBlock - 1) / kPackBlock, blocks_k = (a.k + kPackBlock - 1) / kPackBlock;
  const int64_t lanes = blocks_n * blocks_k * (kBlockBytes / 16);
  launch_kernel("w4a16_dequantize", w4a16_dequantize_kernel<T, Out>, dim3((lanes + kThreads - 1) / kThreads),
                dim3(kThreads), 0, stream, reinterpret_cast<const uint4*>(a.qweight),
                reinterpret_cast<const uint2*>(a.qparams), static_cast<Out*>(a.weight), a.n, a.k, a.group_size,
                packed_groups(a.k, a.group_size), lanes);
}

}  // namespace

void w4a16_dequantize(const W4A16DequantizeArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto out) {
    if (args.scale_dtype == Dtype::kBFloat16) {
      launch<__nv_bfloat16, decltype(out)>(args, stream);
    } else {
      launch<__half, decltype(out)>(args, stream);
    }
  });
}

}  // namespace tinyserve::cuda
