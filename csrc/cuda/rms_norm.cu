// rms_norm.cu — y = h * weight / sqrt(mean(h^2) + eps), with h = x or x + residual.
//
// Bound by memory: one block per row, each element loaded once, see norm_row.cuh. Shapes: RmsNormArgs in kernels.h.
// Twin: cpu/rms_norm.cpp. Test: tests/kernels/test_rms_norm.py.
#include "norm_row.cuh"
#include "ptx.cuh"

namespace tinyserve::cuda {
namespace {

template <typename Items, typename T = typename Items::Element>
__global__ void __launch_bounds__(kMaxNormThreads)
    rms_norm_kernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ residual, T* __restrict__ y,
                    int channels, float eps) {
  using Item = typename Items::Item;
  grid_dependency_wait();
  grid_dependency_launch();
  NormRow<Items> row(x, residual, channels);
  float squares = 0.f;
  row.read([&](const Item& h) {
#pragma unroll
    for (int j = 0; j < Items::kSize; ++j) squares += h.values[j] * h.values[j];
  });
  const float scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(shared_memory())) / channels + eps);
  T* to = y + int64_t(blockIdx.x) * channels;
  row.again([&](int channel, const Item& h) {
    const Item w = Items::read(weight + channel);
    Item result;
#pragma unroll
    for (int j = 0; j < Items::kSize; ++j) result.values[j] = h.values[j] * scale * w.values[j];
    Items::write(to + channel, result);
  });
}

template <typename T>
void launch(const RmsNormArgs& a, void* stream) {
  const bool vecs = in_vecs<T>(a.channels, {a.x, a.weight, a.residual, a.y});
  launch_kernel("rms_norm", vecs ? rms_norm_kernel<VecItems<T>> : rms_norm_kernel<SingleItems<T>>, dim3(a.tokens),
                norm_threads(vecs ? a.channels / kVecSize<T> : a.channels), kMaxWarps * sizeof(float), stream,
                LaunchOptions{.dependent = true}, static_cast<const T*>(a.x), static_cast<const T*>(a.weight),
                static_cast<T*>(a.residual), static_cast<T*>(a.y), int(a.channels), a.eps);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch<decltype(type)>(args, stream); });
}

}  // namespace tinyserve::cuda
