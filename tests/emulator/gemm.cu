// gemm.cu — cp.async, ldmatrix and mma, as a kernel in three stages.
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "kernels.h"

namespace instructions {
namespace {

using namespace tinyserve::cuda;

constexpr int kTile = 32;          // of m, n and k
constexpr int kStages = 3;         // two of them in flight
constexpr int kThreads = 128;      // 4 warps, of 16 m x 16 n each
constexpr int kPitch = kTile + 8;  // elements from one row in shared memory to the next: no two of 8 share banks

template <typename T>
struct Stage {
  T a[kTile][kPitch], b[kTile][kPitch];  // rows of m and of n; transposed, rows of k
};

// Starts the copy of a tile of `from` [rows, columns] at (row, column); what lies outside becomes zero.
template <typename T>
__device__ void copy_tile(T (&to)[kTile][kPitch], const T* from, int rows, int columns, int row, int column) {
  const int r = threadIdx.x / 4, c = threadIdx.x % 4 * 8;
  const int left = row + r < rows ? min(8, columns - (column + c)) : 0;
  const int bytes = left > 0 ? left * int(sizeof(T)) : 0;
  cp_async_16(&to[r][c], bytes > 0 ? from + int64_t(row + r) * columns + column + c : from, bytes);
}

template <typename T, bool kTransposed>
__global__ void __launch_bounds__(kThreads) gemm_kernel(const T* a, const T* b, float* out, int m, int n, int k) {
  auto* stages = reinterpret_cast<Stage<T>*>(shared_memory());
  const int m0 = blockIdx.x * kTile, n0 = blockIdx.y * kTile, tiles = (k + kTile - 1) / kTile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % 2 * 16, warp_n = warp / 2 * 16;

  const auto start = [&](int tile) {
    if (tile < tiles) {
      Stage<T>& stage = stages[tile % kStages];
      if constexpr (kTransposed) {
        copy_tile(stage.a, a, k, m, tile * kTile, m0);
        copy_tile(stage.b, b, k, n, tile * kTile, n0);
      } else {
        copy_tile(stage.a, a, m, k, m0, tile * kTile);
        copy_tile(stage.b, b, n, k, n0, tile * kTile);
      }
    }
    cp_async_commit();
  };
  float d[2][4] = {};
  for (int tile = 0; tile < kStages - 1; ++tile) start(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // everyone's copies are there, and everyone is done with the stage that is filled next
    start(tile + kStages - 1);
    const Stage<T>& stage = stages[tile % kStages];
    for (int k0 = 0; k0 < kTile; k0 += 16) {
      uint32_t fa[4], fb[2];
      if constexpr (kTransposed) {
        ldmatrix_x4_trans(fa, &stage.a[k0 + lane % 8 + lane / 16 * 8][warp_m + lane / 8 % 2 * 8]);
      } else {
        ldmatrix_x4(fa, &stage.a[warp_m + lane % 16][k0 + lane / 16 * 8]);
      }
      for (int half = 0; half < 2; ++half) {
        if constexpr (kTransposed) {
          ldmatrix_x2_trans(fb, &stage.b[k0 + lane % 16][warp_n + half * 8]);
        } else {
          ldmatrix_x2(fb, &stage.b[warp_n + half * 8 + lane % 8][k0 + lane / 8 % 2 * 8]);
        }
        mma_m16n8k16<T>(d[half], fa, fb);
      }
    }
  }
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 4; ++i) {
      const int row = m0 + warp_m + lane / 4 + i / 2 * 8, column = n0 + warp_n + half * 8 + 2 * (lane % 4) + i % 2;
      if (row < m && column < n) out[int64_t(row) * n + column] = d[half][i];
    }
}

template <typename T>
void launch(const GemmArgs& args, void* stream) {
  const dim3 grid((args.m + kTile - 1) / kTile, (args.n + kTile - 1) / kTile);
  launch_kernel("gemm", args.transposed ? gemm_kernel<T, true> : gemm_kernel<T, false>, grid, dim3(kThreads),
                kStages * sizeof(Stage<T>), stream, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                args.out, args.m, args.n, args.k);
}

}  // namespace

void gemm(const GemmArgs& args, void* stream) {
  if (args.bf16) return launch<__nv_bfloat16>(args, stream);
  launch<__half>(args, stream);
}

}  // namespace instructions
