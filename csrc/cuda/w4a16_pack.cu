// w4a16_pack.cu — codes, scales and zeros into the layout of kernels.h. Once per weight, at load: a thread for the 16
// bytes of a lane, and one for the params of a row in a group.
//
// Twin: cpu/w4a16_pack.cpp. Test: tests/kernels/test_w4a16_pack.py.
#include "launch.cuh"
#include "packed.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = 256;

// The word of rows n and n + 8 and columns k, k + 1, k + 8, k + 9; `seen` collects the bits of all codes.
__device__ uint32_t pack_word(const uint8_t* codes, int64_t n, int64_t k, int64_t num_rows, int64_t num_columns,
                              uint32_t& seen) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = n + i % 2 * 8, column = k + i / 2 * 8;
    if (row >= num_rows || column >= num_columns) continue;
    const uint8_t* pair = codes + row * num_columns + column;
    const uint32_t low = pair[0], high = pair[1];
    seen |= low | high;
    word |= low << (4 * i) | high << (4 * i + 16);
  }
  return word;
}

// qweight [N/64 up][K/64 up][4][32] of 16 bytes
__global__ void __launch_bounds__(kThreads)
    pack_codes_kernel(const uint8_t* codes, uint4* qweight, int32_t* faults, int64_t n, int64_t k, int64_t lanes) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= lanes) return;
  const int64_t blocks_k = (k + kPackBlock - 1) / kPackBlock, block = at / 128;
  const int tile = at / 32 % 4, lane = at % 32;
  const int64_t row = block / blocks_k * kPackBlock + tile * kTile + lane / 4;
  const int64_t column = block % blocks_k * kPackBlock + lane % 4 * 2;
  uint32_t words[kTileWords], seen = 0;
#pragma unroll
  for (int i = 0; i < kTileWords; ++i) words[i] = pack_word(codes, row, column + i * kTile, n, k, seen);
  qweight[at] = make_uint4(words[0], words[1], words[2], words[3]);
  if (seen > 15) faults[kCodeFault] = 1;  // threads can only write the same value
}

// qparams [N/64 up][groups][64] words
template <typename Given, typename Kept>
__global__ void __launch_bounds__(kThreads)
    pack_params_kernel(const Given* scales, const uint8_t* zeros, uint32_t* qparams, int32_t* faults, int64_t n,
                       int64_t groups, int64_t groups_up, int64_t words) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= words) return;
  const int64_t group = at / kPackBlock % groups_up, block = at / kPackBlock / groups_up;
  const int position = at % kPackBlock;
  const int64_t row = block * kPackBlock + position / kTile * kTile + position % 2 * 8 + position % kTile / 2;
  uint32_t word = 0;
  if (row < n && group < groups) {
    const Kept scale = Kept(float(scales[row * groups + group]));
    const uint8_t zero = zeros[row * groups + group];
    uint16_t bits;
    memcpy(&bits, &scale, sizeof bits);
    word = uint32_t(zero) << 16 | bits;
    if (!(fabsf(float(scale)) < INFINITY)) faults[kScaleFault] = 1;
    if (zero > kMaxZero) faults[kZeroFault] = 1;
  }
  qparams[at] = word;
}

dim3 grid_of(int64_t threads) { return dim3((threads + kThreads - 1) / kThreads); }

template <typename Given, typename Kept>
void pack_params(const W4A16PackArgs& a, void* stream) {
  const int64_t groups = a.k / a.group_size, groups_up = packed_groups(a.k, a.group_size);
  const int64_t words = (a.n + kPackBlock - 1) / kPackBlock * groups_up * kPackBlock;
  launch_kernel("w4a16_pack", pack_params_kernel<Given, Kept>, grid_of(words), dim3(kThreads), 0, stream,
                static_cast<const Given*>(a.scales), a.zeros, reinterpret_cast<uint32_t*>(a.qparams), a.faults, a.n,
                groups, groups_up, words);
}

}  // namespace

void w4a16_pack(const W4A16PackArgs& args, void* stream) {
  const int64_t blocks_n = (args.n + kPackBlock - 1) / kPackBlock, blocks_k = (args.k + kPackBlock - 1) / kPackBlock;
  const int64_t lanes = blocks_n * blocks_k * (kBlockBytes / 16);
  launch_kernel("w4a16_pack", pack_codes_kernel, grid_of(lanes), dim3(kThreads), 0, stream, args.codes,
                reinterpret_cast<uint4*>(args.qweight), args.faults, args.n, args.k, lanes);
  dispatch(args.scale_dtype, [&](auto given) {
    if (args.kept_dtype == Dtype::kBFloat16) {
      pack_params<decltype(given), __nv_bfloat16>(args, stream);
    } else {
      pack_params<decltype(given), __half>(args, stream);
    }
  });
}

}  // namespace tinyserve::cuda
