// rope_kv_write.cu — rotary positions for queries and keys, and the way of keys and values into the paged cache, whose
// elements may have 8 bits.
//
// Bound by memory and, for few tokens, by latency: a power of two of lanes takes one head, a lane one vector of each
// half of the rotated part, and one vector of each half of the rest. So everything is loaded once, and a head's largest
// element, which scales its 8-bit codes, is known after a few shuffles. Shapes: RopeKvWriteArgs in kernels.h. Twin:
// cpu/rope_kv_write.cpp. Test: tests/kernels/test_rope_kv_write.py.
#include "launch.cuh"
#include "rotary.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = 128;

// `lanes` threads for each head: see RotaryHead.
template <typename T, typename Cache, int Size, int Items>
__global__ void __launch_bounds__(kThreads) rope_kv_write_kernel(RopeKvWriteArgs a, int lanes) {
  grid_dependency_wait();
  grid_dependency_launch();
  const int64_t heads = a.num_heads + 2 * a.num_kv_heads;
  const int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const bool exists = index < a.tokens * heads;  // the rest of a warp must stay for the shuffles
  const int64_t token = exists ? index / heads : 0;
  const int head = exists ? int(index % heads) : 0;
  const RotaryHead<T, Size, Items> turned(a, token, head, lane, lanes, exists);
  const int slot = exists ? a.slots[token] : -1;
  const bool is_query = head < a.num_heads, is_value = head >= a.num_heads + a.num_kv_heads;

  if (is_query) {
    T* to = static_cast<T*>(a.q) + (token * a.num_heads + head) * a.head_dim;
    turned.each_piece([&](int i, const float (&values)[Size]) { store_some<Size>(to + i, values); });
  }
  const int64_t row = cache_row(a, slot, head - int(a.num_heads + (is_value ? a.num_kv_heads : 0)));
  const bool writes = !is_query && slot >= 0;
  Cache* cache = static_cast<Cache*>(is_value ? a.v_cache : a.k_cache) + row * a.head_dim;
  if constexpr (sizeof(Cache) != 1) {
    if (writes) turned.each_piece([&](int i, const float (&values)[Size]) { store_some<Size>(cache + i, values); });
  } else {
    const CodeScale<Cache> code(turned.largest(lanes));
    if (!writes) return;
    turned.each_piece([&](int i, const float (&values)[Size]) { code.store(cache + i, values); });
    if (lane == 0) (is_value ? a.v_scales : a.k_scales)[row] = code.scale;
  }
}

template <typename T, typename Cache>
void launch(const RopeKvWriteArgs& a, void* stream) {
  const bool whole = has_whole_pieces<T>(a);
  const int64_t pairs = a.rotary_dim / 2 + (a.head_dim - a.rotary_dim + 1) / 2;
  const int64_t items = whole ? pairs / kVecSize<T> : pairs;
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
