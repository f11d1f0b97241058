// rms_norm.cu — y = h * weight / sqrt(mean(h^2) + eps), with h = x or x + residual.
//
// Bound by memory: one block per row, each element loaded once and kept in registers between the sum and the result.
// Rows of up to kMaxThreads * kMaxVecs * 16 bytes stay there; longer ones are read a second time, from the second-level
// cache. Shapes: RmsNormArgs in kernels.h. Twin: cpu/rms_norm.cpp. Test: tests/kernels/test_rms_norm.py.
#include "launch.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

#include <algorithm>

namespace tinyserve::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxVecs = 4;  // of 16 bytes, that a thread keeps

// Rows on 16 bytes, whose channels are whole vectors.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ residual, T* __restrict__ y,
                    int channels, float eps) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int64_t row = int64_t(blockIdx.x) * channels;
  const int vecs = channels / kVecSize<T>;
  Vec<T> kept[kMaxVecs];

  const auto read = [&](int i) {
    const int64_t at = row + int64_t(i) * kVecSize<T>;
    Vec<T> h = load_streaming(x + at);
    if (residual != nullptr) {
      const Vec<T> old = load(residual + at);
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j)
        h.values[j] = float(T(h.values[j] + old.values[j]));  // the norm of what is stored
      store(residual + at, h);
    }
    return h;
  };
  float squares = 0.f;
  const auto add_squares = [&](const Vec<T>& h) {
#pragma unroll
    for (int j = 0; j < kVecSize<T>; ++j) squares += h.values[j] * h.values[j];
  };
#pragma unroll
  for (int v = 0; v < kMaxVecs; ++v) {
    if (const int i = v * blockDim.x + threadIdx.x; i < vecs) add_squares(kept[v] = read(i));
  }
  for (int i = kMaxVecs * blockDim.x + threadIdx.x; i < vecs; i += blockDim.x) add_squares(read(i));

  const float scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(shared_memory())) / channels + eps);
  const auto write = [&](int i, const Vec<T>& h) {
    const Vec<T> w = load(weight + i * kVecSize<T>);
    Vec<T> result;
#pragma unroll
    for (int j = 0; j < kVecSize<T>; ++j) result.values[j] = h.values[j] * scale * w.values[j];
    store(y + row + int64_t(i) * kVecSize<T>, result);
  };
#pragma unroll
  for (int v = 0; v < kMaxVecs; ++v) {
    if (const int i = v * blockDim.x + threadIdx.x; i < vecs) write(i, kept[v]);
  }
  for (int i = kMaxVecs * blockDim.x + threadIdx.x; i < vecs; i += blockDim.x) {
    write(i, load((residual != nullptr ? residual : x) + row + int64_t(i) * kVecSize<T>));  // this thread stored it
  }
}

// Any number of channels, element by element.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_ragged_kernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ residual,
                           T* __restrict__ y, int channels, float eps) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int64_t row = int64_t(blockIdx.x) * channels;
  float squares = 0.f;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    float h = float(x[row + c]);
    if (residual != nullptr) h = float(residual[row + c] = T(h + float(residual[row + c])));
    squares += h * h;
  }
  const float scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(shared_memory())) / channels + eps);
  const T* from = residual != nullptr ? residual : x;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    y[row + c] = T(float(from[row + c]) * scale * float(weight[c]));
  }
}

template <typename T>
void launch(const RmsNormArgs& a, void* stream) {
  const auto on_16_bytes = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool whole = a.channels % kVecSize<T> == 0 && on_16_bytes(a.x) && on_16_bytes(a.weight) &&
                     on_16_bytes(a.residual) && on_16_bytes(a.y);
  const int64_t items = whole ? a.channels / kVecSize<T> : a.channels;
  const int threads = int(std::min<int64_t>((items + kWarpSize - 1) / kWarpSize * kWarpSize, kMaxThreads));
  launch_kernel("rms_norm", whole ? rms_norm_kernel<T> : rms_norm_ragged_kernel<T>, dim3(a.tokens), dim3(threads),
                kMaxWarps * sizeof(float), stream, LaunchOptions{.dependent = true}, static_cast<const T*>(a.x),
                static_cast<const T*>(a.weight), static_cast<T*>(a.residual), static_cast<T*>(a.y), int(a.channels),
                a.eps);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch<decltype(type)>(args, stream); });
}

}  // namespace tinyserve::cuda
