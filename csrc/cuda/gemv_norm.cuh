// gemv_norm.cuh — RMSNorm of the rows of x that a CTA has staged in shared memory, in place: what rms_norm.cu gives, to
// the rounding of the sum's order, without a kernel of its own.
//
// Every CTA does it for itself: the rows are there anyway, and the weights it will multiply arrive meanwhile. A thread
// sums and rewrites those 16 bytes that it has staged itself, so that nobody needs to wait between the copy and the
// sum; which these are, and so the order of a sum, depends on K alone.
#pragma once

#include "reduce.cuh"
#include "vec.cuh"

namespace tinyserve::cuda {

// x: m rows, `stride` bytes apart, of `vecs` times 16 bytes of which thread t staged t, t + blockDim.x, ...; zeros past
// k. weight: a row like them. sums: [m][kMaxWarps], free. All threads take part; a barrier must follow.
template <typename T>
__device__ inline void normalize_rows(char* x, int stride, int m, int k, int vecs, const char* weight, float eps,
                                      float* sums) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const auto vec = [](auto* row, int i) { return reinterpret_cast<const T*>(row + i * 16); };
  for (int row = 0; row < m; ++row) {
    float squares = 0.f;
    for (int i = threadIdx.x; i < vecs; i += blockDim.x) {
      const Vec<T> h = load(vec(x + row * stride, i));
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j) squares += h.values[j] * h.values[j];
    }
    squares = warp_sum(squares);
    if (lane == 0) sums[row * kMaxWarps + warp] = squares;
  }
  __syncthreads();
  for (int row = 0; row < m; ++row) {
    const float scale = rsqrtf(warp_sum(lane < warps ? sums[row * kMaxWarps + lane] : 0.f) / k + eps);
    for (int i = threadIdx.x; i < vecs; i += blockDim.x) {
      Vec<T> h = load(vec(x + row * stride, i));
      const Vec<T> w = load(vec(weight, i));
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j) h.values[j] = h.values[j] * scale * w.values[j];
      store(reinterpret_cast<T*>(x + row * stride + i * 16), h);
    }
  }
}

}  // namespace tinyserve::cuda
