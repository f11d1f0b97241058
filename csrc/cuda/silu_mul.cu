// silu_mul.cu — the gate of an MLP: silu(x) = x / (1 + e^-x), times the other half.
//
// Bound by memory: a thread takes 16 bytes of the gate and the 16 that belong to them, or one element of each where
// rows are not whole vectors. Shapes: SiluMulArgs in kernels.h. Twin: cpu/silu_mul.cpp. Test:
// tests/kernels/test_silu_mul.py.
#include "launch.cuh"
#include "vec.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline float gated(float gate, float up) { return gate / (1.f + expf(-gate)) * up; }

// Rows on 16 bytes, whose halves are whole vectors; `chunks` blocks to a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    silu_mul_kernel(const T* __restrict__ gate_up, T* __restrict__ y, int size, int chunks) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int64_t token = blockIdx.x / chunks;
  const int i = (blockIdx.x % chunks * kThreads + threadIdx.x) * kVecSize<T>;
  if (i >= size) return;
  const T* row = gate_up + token * 2 * size;
  const Vec<T> gate = load_streaming(row + i), up = load_streaming(row + size + i);
  Vec<T> result;
#pragma unroll
  for (int j = 0; j < kVecSize<T>; ++j) result.values[j] = gated(gate.values[j], up.values[j]);
  store(y + token * size + i, result);
}

// Any size, element by element.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    silu_mul_ragged_kernel(const T* __restrict__ gate_up, T* __restrict__ y, int size, int chunks) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int64_t token = blockIdx.x / chunks;
  const int i = blockIdx.x % chunks * kThreads + threadIdx.x;
  if (i >= size) return;
  const T* row = gate_up + token * 2 * size;
  y[token * size + i] = T(gated(float(row[i]), float(row[size + i])));
}

template <typename T>
void launch(const SiluMulArgs& a, void* stream) {
  const auto on_16_bytes = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool whole = a.size % kVecSize<T> == 0 && on_16_bytes(a.gate_up) && on_16_bytes(a.y);
  const int64_t items = whole ? a.size / kVecSize<T> : a.size, chunks = (items + kThreads - 1) / kThreads;
  launch_kernel("silu_mul", whole ? silu_mul_kernel<T> : silu_mul_ragged_kernel<T>, dim3(unsigned(a.tokens * chunks)),
                dim3(kThreads), 0, stream, LaunchOptions{.dependent = true}, static_cast<const T*>(a.gate_up),
                static_cast<T*>(a.y), int(a.size), int(chunks));
}

}  // namespace

void silu_mul(const SiluMulArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch<decltype(type)>(args, stream); });
}

}  // namespace tinyserve::cuda
