// cluster_gemm.cu — wgmma, tensor copies shared by a cluster, and warps that only copy. With mistakes to be found.
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "../../csrc/cuda/tensor_map.h"
#include "kernels.h"

#include <stdexcept>

namespace instructions {
namespace {

using namespace tinyserve::cuda;

constexpr int kTileN = 64, kTileK = 64;
constexpr int kStages = 3, kCluster = 2;
constexpr int kConsumers = 128, kThreads = 256;  // a warpgroup multiplies, one copies

template <int kTileM>
struct Tiles {
  uint16_t x[kStages][kTileM][kTileK];
  uint64_t full[kStages], empty[kStages];
};

// Two elements of w at [row, column], zero outside.
template <typename T>
__device__ uint32_t two(const T* w, int n, int k, int row, int column) {
  uint32_t bits = 0;
  if (row < n && column < k) memcpy(&bits, w + int64_t(row) * k + column, sizeof bits);
  return bits;
}

template <typename T, int kTileM>
__global__ void __launch_bounds__(kThreads, 1) cluster_gemm_kernel(const __grid_constant__ CUtensorMap x, const T* w,
                                                                   float* out, int m, int n, int k, Mistake mistake) {
  auto& tiles = *reinterpret_cast<Tiles<kTileM>*>(shared_memory());
  const int m0 = blockIdx.y * kTileM, n0 = blockIdx.x * kTileN, k_tiles = (k + kTileK - 1) / kTileK;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&tiles.full[s], 1);
      mbarrier_init(&tiles.empty[s], kCluster * kConsumers / 32);  // of both blocks: each copies into both
    }
    if (mistake != Mistake::kNoInitFence) mbarrier_fence_init();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    set_max_registers_down<40>();
    if (mistake != Mistake::kEarlyRead) grid_dependency_wait();
    if (threadIdx.x == kConsumers) {
      constexpr int kHalf = kTileM / kCluster;  // the rows that this block copies
      const int first = cluster_rank() * kHalf;
      for (int tile = 0; tile < k_tiles; ++tile) {
        const int stage = tile % kStages;
        mbarrier_wait(&tiles.empty[stage], tile / kStages % 2 ^ 1);
        if (mistake != Mistake::kNoExpectation)
          mbarrier_expect_bytes(&tiles.full[stage], sizeof tiles.x[stage]);
        else
          mbarrier_arrive(&tiles.full[stage]);
        tensor_copy_2d_multicast(&tiles.x[stage][first], &x, tile * kTileK, m0 + first, &tiles.full[stage], 3);
      }
    }
    if (mistake == Mistake::kEarlyRead && threadIdx.x == kConsumers) grid_dependency_wait();
  } else {
    set_max_registers_up<240>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = n0 + 16 * warp + lane / 4, column = 2 * (lane % 4);
    const auto release = [&](int stage) {
      if (lane < kCluster && mistake != Mistake::kNoRelease) mbarrier_arrive_remote(&tiles.empty[stage], lane);
    };
    float d[kTileM / 2] = {};
    uint32_t a[4][4];
    for (int tile = 0; tile < k_tiles; ++tile) {
      const int stage = tile % kStages;
      const auto load = [&] {
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            a[step][i] = two(w, n, k, row + i % 2 * 8, tile * kTileK + 16 * step + column + i / 2 * 8);
      };
      if (mistake != Mistake::kLateA) load();
      if (mistake != Mistake::kNoFence) wgmma_fence();
      if (mistake == Mistake::kLateA) load();
      mbarrier_wait(&tiles.full[stage], tile / kStages % 2);
      if (mistake == Mistake::kEarlyRelease) release(stage);
      const uint64_t descriptor = shared_descriptor(tiles.x[stage]);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma_m64k16<T, kTileM>(d, a[step], descriptor + 2 * step);
        if (step % 2 == 1) wgmma_commit();
      }
      if (mistake == Mistake::kReusedA) a[3][0] += 1;
      if (mistake == Mistake::kEarlyD) d[0] = float(tile);
      wgmma_wait<1>();
      wgmma_wait<0>(d);
      if (mistake != Mistake::kEarlyRelease) release(stage);
    }
#pragma unroll
    for (int j = 0; j < kTileM / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int to_n = row + i / 2 * 8, to_m = m0 + 8 * j + column + i % 2;
        if (to_n < n && to_m < m) out[int64_t(to_m) * n + to_n] = d[4 * j + i];
      }
  }
  grid_dependency_launch();
  cluster_sync();  // nobody arrives at a block that has left
}

template <typename T, int kTileM>
void launch(const ClusterGemmArgs& a, void* stream) {
  const int tiles_n = (a.n + kTileN - 1) / kTileN;
  const dim3 grid((tiles_n + kCluster - 1) / kCluster * kCluster, (a.m + kTileM - 1) / kTileM);
  launch_kernel("cluster_gemm", cluster_gemm_kernel<T, kTileM>, grid, dim3(kThreads), sizeof(Tiles<kTileM>), stream,
                {.cluster = kCluster, .dependent = true}, tensor_map(a.x, a.m, a.k, kTileM / kCluster),
                static_cast<const T*>(a.w), a.out, a.m, a.n, a.k, a.mistake);
}

template <typename T>
void launch(const ClusterGemmArgs& args, void* stream) {
  switch (args.tile_m) {
    case 8:
      return launch<T, 8>(args, stream);
    case 24:
      return launch<T, 24>(args, stream);
    case 64:
      return launch<T, 64>(args, stream);
    case 256:
      return launch<T, 256>(args, stream);
    default:
      throw std::invalid_argument("cluster_gemm: tile_m must be 8, 24, 64 or 256");
  }
}

}  // namespace

void cluster_gemm(const ClusterGemmArgs& args, void* stream) {
  if (args.bf16) return launch<__nv_bfloat16>(args, stream);
  launch<__half>(args, stream);
}

}  // namespace instructions
