// rope_kv_write.cu — rotary positions for queries and keys, and the way of keys and values into the paged cache, whose
// elements may have 8 bits.
//
// Bound by memory and, for few tokens, by latency: a power of two of lanes takes one head, a lane one vector of each
// half of the rotated part, and one vector of each half of the rest. So everything is loaded once, and a head's largest
// element, which scales its 8-bit codes, is known after a few shuffles. Shapes: RopeKvWriteArgs in kernels.h. Twin:
// cpu/rope_kv_write.cpp. Test: tests/kernels/test_rope_kv_write.py.
#include "cache_dtype.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = 128;

// The larger, or NaN where one of them is.
__device__ inline float larger(float a, float b) { return b > a || b != b ? b : a; }

// Size neighbours of one head as floats, in 16 bytes or alone.
template <int Size, typename T>
__device__ inline void load_some(const T* from, float (&values)[Size]) {
  if constexpr (Size == 1) {
    values[0] = float(*from);
  } else {
    const Vec<T> vec = load(from);
#pragma unroll
    for (int i = 0; i < Size; ++i) values[i] = vec.values[i];
  }
}
template <int Size, typename T>
__device__ inline void store_some(T* to, const float (&values)[Size]) {
  if constexpr (Size == 1) {
    *to = T(values[0]);
  } else {
    Vec<T> vec;
#pragma unroll
    for (int i = 0; i < Size; ++i) vec.values[i] = values[i];
    store(to, vec);
  }
}
template <int Size, typename Code>
__device__ inline void store_codes(Code* to, const float (&values)[Size], float inverse) {
  Code codes[Size];
#pragma unroll
  for (int i = 0; i < Size; ++i) codes[i] = to_code<Code>(values[i] * inverse);
  if constexpr (Size == 1) {
    *to = codes[0];
  } else {
    using Bits = typename BitsOf<Size>::type;
    Bits bits;
    memcpy(&bits, codes, sizeof bits);
    *reinterpret_cast<Bits*>(to) = bits;
  }
}

// Size neighbours of a row of the table of cosines and sines.
template <int Size>
__device__ inline void load_turn(const float* from, float (&values)[Size]) {
  constexpr int kStep = Size < kVecSize<float> ? Size : kVecSize<float>;
#pragma unroll
  for (int i = 0; i < Size; i += kStep) load_some<kStep>(from + i, reinterpret_cast<float (&)[kStep]>(values[i]));
}

// What one lane holds of a head: element i of the first part is turned with element i of the second.
template <int Size>
struct Pair {
  float first[Size], second[Size];
};

// `lanes` threads, a power of two, for each head; a lane's items are `lanes` apart. Size elements are 16 bytes, or one.
template <typename T, typename Cache, int Size, int Items>
__global__ void __launch_bounds__(kThreads) rope_kv_write_kernel(RopeKvWriteArgs a, int lanes) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int dim = int(a.head_dim), half = int(a.rotary_dim / 2), rest = dim - int(a.rotary_dim);
  const int64_t heads = a.num_heads + 2 * a.num_kv_heads;
  const int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const bool exists = index < a.tokens * heads;  // the rest of a warp must stay for the shuffles
  const int64_t token = exists ? index / heads : 0;
  const int head = exists ? int(index % heads) : 0;
  const T* from = static_cast<const T*>(a.qkv) + (token * heads + head) * dim;
  const int slot = exists ? a.slots[token] : -1;
  const bool is_query = head < a.num_heads, is_value = head >= a.num_heads + a.num_kv_heads;

  Pair<Size> kept[Items] = {};
  int at[Items][2];  // where a pair's parts lie; from dim on: nowhere
#pragma unroll
  for (int n = 0; n < Items; ++n) {
    const int i = (n * lanes + lane) * Size;
    const int j = i - half;  // past the rotated pairs
    at[n][0] = i < half ? i : int(a.rotary_dim) + j;
    at[n][1] = i < half ? i + half : int(a.rotary_dim) + (rest + 1) / 2 + j;
    if (i >= half && j >= (rest + 1) / 2) at[n][0] = dim;
    if (i >= half && j >= rest / 2) at[n][1] = dim;
    if (!exists) at[n][0] = at[n][1] = dim;
    Pair<Size>& pair = kept[n];
    if (at[n][0] < dim) load_some<Size>(from + at[n][0], pair.first);
    if (at[n][1] < dim) load_some<Size>(from + at[n][1], pair.second);
    if (i >= half || is_value || !exists) continue;
    const float* turn = a.cos_sin + a.positions[token] * a.rotary_dim + i;
    float cos[Size], sin[Size];
    load_turn(turn, cos);
    load_turn(turn + half, sin);
#pragma unroll
    for (int e = 0; e < Size; ++e) {
      const float x = pair.first[e], y = pair.second[e];
      pair.first[e] = x * cos[e] - y * sin[e];
      pair.second[e] = y * cos[e] + x * sin[e];
    }
  }
  const auto each_part = [&](const auto& visit) {
#pragma unroll
    for (int n = 0; n < Items; ++n) {
      if (at[n][0] < dim) visit(at[n][0], kept[n].first);
      if (at[n][1] < dim) visit(at[n][1], kept[n].second);
    }
  };

  if (is_query) {
    T* to = static_cast<T*>(a.q) + (token * a.num_heads + head) * dim;
    each_part([&](int i, const float (&values)[Size]) { store_some<Size>(to + i, values); });
  }
  const int kv_head = head - int(a.num_heads + (is_value ? a.num_kv_heads : 0));
  const int64_t row =
      (slot / a.block_size * a.num_kv_heads + kv_head) * a.block_size + slot % a.block_size;  // where a slot is given
  const bool writes = !is_query && slot >= 0;
  Cache* cache = static_cast<Cache*>(is_value ? a.v_cache : a.k_cache) + row * dim;
  if constexpr (sizeof(Cache) != 1) {
    if (writes) each_part([&](int i, const float (&values)[Size]) { store_some<Size>(cache + i, values); });
  } else {
    float largest = 0.f;
    each_part([&](int, const float (&values)[Size]) {
#pragma unroll
      for (int e = 0; e < Size; ++e) largest = larger(largest, fabsf(values[e]));
    });
    for (int step = lanes / 2; step > 0; step /= 2)
      largest = larger(largest, __shfl_xor_sync(0xffffffff, largest, step));
    if (!writes) return;
    const float scale = largest / kLargestCode<Cache> + largest * 0.f;  // NaN for infinity as well
    const float inverse = scale > 0.f ? 1.f / scale : 0.f;
    each_part([&](int i, const float (&values)[Size]) { store_codes<Size>(cache + i, values, inverse); });
    if (lane == 0) (is_value ? a.v_scales : a.k_scales)[row] = scale;
  }
}

template <typename T, typename Cache>
void launch(const RopeKvWriteArgs& a, void* stream) {
  const auto on_16_bytes = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int64_t half = a.rotary_dim / 2, rest = a.head_dim - a.rotary_dim;
  const bool whole = half % kVecSize<T> == 0 && rest % (2 * kVecSize<T>) == 0 && on_16_bytes(a.qkv) &&
                     on_16_bytes(a.q) && on_16_bytes(a.k_cache) && on_16_bytes(a.v_cache) && on_16_bytes(a.cos_sin);
  const int64_t pairs = half + (rest + 1) / 2, items = whole ? pairs / kVecSize<T> : pairs;
  int lanes = 1;
  while (lanes < items && lanes < kWarpSize) lanes *= 2;
  constexpr int kMaxItems = kMaxHeadDim / 2 / kWarpSize;  // of a lane, where an item is one element
  static_assert(kMaxHeadDim / 2 / kVecSize<T> <= kWarpSize);
  const int64_t threads = a.tokens * (a.num_heads + 2 * a.num_kv_heads) * lanes;
  launch_kernel("rope_kv_write",
                whole ? rope_kv_write_kernel<T, Cache, kVecSize<T>, 1> : rope_kv_write_kernel<T, Cache, 1, kMaxItems>,
                dim3(unsigned((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream,
                LaunchOptions{.dependent = true}, a, lanes);
}

}  // namespace

void rope_kv_write(const RopeKvWriteArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) {
    using T = decltype(type);
    dispatch_cache<T>(args.cache_dtype, [&](auto cache) { launch<T, decltype(cache)>(args, stream); });
  });
}

}  // namespace tinyserve::cuda
