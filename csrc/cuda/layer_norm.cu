// layer_norm.cu — y = (h - mean(h)) / sqrt(variance(h) + eps) * weight + bias, with h = x or x + residual.
//
// Bound by memory: one block per row, each element loaded once, see norm_row.cuh. The variance is that of what is left
// when the mean has been taken away, and so is what rounding has left in the mean: exact however far the row lies from
// zero. Shapes: LayerNormArgs in kernels.h. Twin: cpu/layer_norm.cpp. Test: tests/kernels/test_layer_norm.py.
#include "norm_row.cuh"
#include "ptx.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kSums = 3;  // over the block: of the elements, of what is left of them, of its squares

template <typename Items, typename T = typename Items::Element>
__global__ void __launch_bounds__(kMaxNormThreads)
    layer_norm_kernel(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                      T* __restrict__ residual, T* __restrict__ y, int channels, float eps) {
  using Item = typename Items::Item;
  grid_dependency_wait();
  grid_dependency_launch();
  float* sums = reinterpret_cast<float*>(shared_memory());
  NormRow<Items> row(x, residual, channels);
  float total = 0.f;
  row.read([&](const Item& h) {
#pragma unroll
    for (int j = 0; j < Items::kSize; ++j) total += h.values[j];
  });
  const float rough_mean = block_sum(total, sums) / channels;
  float deviation = 0.f, squares = 0.f;
  row.again([&](int, const Item& h) {
#pragma unroll
    for (int j = 0; j < Items::kSize; ++j) {
      const float d = h.values[j] - rough_mean;
      deviation += d;
      squares += d * d;
    }
  });
  const float rest = block_sum(deviation, sums + kMaxWarps) / channels;
  const float scale = rsqrtf(block_sum(squares, sums + 2 * kMaxWarps) / channels - rest * rest + eps);
  T* to = y + int64_t(blockIdx.x) * channels;
  row.again([&](int channel, const Item& h) {
    const Item w = Items::read(weight + channel);
    Item result = {};
    if (bias != nullptr) result = Items::read(bias + channel);
#pragma unroll
    for (int j = 0; j < Items::kSize; ++j) result.values[j] += (h.values[j] - rough_mean - rest) * scale * w.values[j];
    Items::write(to + channel, result);
  });
}

template <typename T>
void launch(const LayerNormArgs& a, void* stream) {
  const bool vecs = in_vecs<T>(a.channels, {a.x, a.weight, a.bias, a.residual, a.y});
  launch_kernel("layer_norm", vecs ? layer_norm_kernel<VecItems<T>> : layer_norm_kernel<SingleItems<T>>, dim3(a.tokens),
                norm_threads(vecs ? a.channels / kVecSize<T> : a.channels), kSums * kMaxWarps * sizeof(float), stream,
                LaunchOptions{.dependent = true}, static_cast<const T*>(a.x), static_cast<const T*>(a.weight),
                static_cast<const T*>(a.bias), static_cast<T*>(a.residual), static_cast<T*>(a.y), int(a.channels),
                a.eps);
}

}  // namespace

void layer_norm(const LayerNormArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch<decltype(type)>(args, stream); });
}

}  // namespace tinyserve::cuda
