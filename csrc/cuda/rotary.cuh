// rotary.cuh — one head of a token's queries, keys or values in the registers of a few lanes: turned by its position,
// and rounded to 8 bits where the cache has them.
//
// Products and sums are rounded in an order that is written down, so that every kernel that turns a head makes the same
// bits of it. Shapes: RopeKvWriteArgs in kernels.h.
#pragma once

#include "cache_dtype.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace tinyserve::cuda {

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

// The scale of a head whose largest |element| is `largest`, NaN for NaN and infinity, and its inverse for the codes.
template <typename Code>
struct CodeScale {
  float scale, inverse;

  __device__ explicit CodeScale(float largest)
      : scale(largest / kLargestCode<Code> + largest * 0.f), inverse(scale > 0.f ? 1.f / scale : 0.f) {}

  template <int Size>
  __device__ void store(Code* to, const float (&values)[Size]) const {
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
};

// The row of a cache [blocks, Hkv, S] that a slot is for one of its heads.
__device__ inline int64_t cache_row(const RopeKvWriteArgs& a, int slot, int kv_head) {
  return (slot / a.block_size * a.num_kv_heads + kv_head) * a.block_size + slot % a.block_size;
}

// What each of `lanes` threads, a power of two, holds of a head: of each of its items one piece of the first half of
// the rotated part and one of the second, or one of each half of the rest; its items are `lanes` apart. Size elements
// are 16 bytes, or one.
template <typename T, int Size, int Items>
class RotaryHead {
 public:
  // `head`: of the H + 2 * Hkv of the token; where it does not exist, nothing is loaded.
  __device__ RotaryHead(const RopeKvWriteArgs& a, int64_t token, int head, int lane, int lanes, bool exists)
      : dim_(int(a.head_dim)) {
    const int half = int(a.rotary_dim / 2), rest = dim_ - int(a.rotary_dim);
    const bool turns = exists && head < a.num_heads + a.num_kv_heads;  // values do not
    const T* from = static_cast<const T*>(a.qkv) + (token * (a.num_heads + 2 * a.num_kv_heads) + head) * dim_;
#pragma unroll
    for (int n = 0; n < Items; ++n) {
      const int i = (n * lanes + lane) * Size;
      const int j = i - half;  // past the rotated pairs
      at_[n][0] = i < half ? i : int(a.rotary_dim) + j;
      at_[n][1] = i < half ? i + half : int(a.rotary_dim) + (rest + 1) / 2 + j;
      if (!exists || (i >= half && j >= (rest + 1) / 2)) at_[n][0] = dim_;
      if (!exists || (i >= half && j >= rest / 2)) at_[n][1] = dim_;
      if (at_[n][0] < dim_) load_some<Size>(from + at_[n][0], values_[n][0]);
      if (at_[n][1] < dim_) load_some<Size>(from + at_[n][1], values_[n][1]);
      if (i < half && turns) turn(n, a.cos_sin + a.positions[token] * a.rotary_dim + i, half);
    }
  }

  // Calls visit(first element, Size values) for each piece.
  template <typename Visit>
  __device__ void each_piece(const Visit& visit) const {
#pragma unroll
    for (int n = 0; n < Items; ++n) {
      if (at_[n][0] < dim_) visit(at_[n][0], values_[n][0]);
      if (at_[n][1] < dim_) visit(at_[n][1], values_[n][1]);
    }
  }

  // The head's largest |element|, or NaN; all threads of a warp ask together.
  __device__ float largest(int lanes) const {
    float most = 0.f;
    each_piece([&](int, const float (&values)[Size]) {
#pragma unroll
      for (int e = 0; e < Size; ++e) most = larger(most, fabsf(values[e]));
    });
    for (int step = lanes / 2; step > 0; step /= 2) most = larger(most, __shfl_xor_sync(0xffffffff, most, step));
    return most;
  }

 private:
  // The larger, or NaN where one of them is.
  __device__ static float larger(float a, float b) { return b > a || b != b ? b : a; }

  // `angles`: cosines, and `half` further on sines.
  __device__ void turn(int n, const float* angles, int half) {
    float cos[Size], sin[Size];
    load_angles(angles, cos);
    load_angles(angles + half, sin);
#pragma unroll
    for (int e = 0; e < Size; ++e) {
      const float x = values_[n][0][e], y = values_[n][1][e];
      values_[n][0][e] = fmaf(x, cos[e], -(y * sin[e]));
      values_[n][1][e] = fmaf(y, cos[e], x * sin[e]);
    }
  }
  __device__ static void load_angles(const float* from, float (&values)[Size]) {
    constexpr int kStep = Size < kVecSize<float> ? Size : kVecSize<float>;
#pragma unroll
    for (int i = 0; i < Size; i += kStep) load_some<kStep>(from + i, reinterpret_cast<float (&)[kStep]>(values[i]));
  }

  int dim_;
  float values_[Items][2][Size] = {};
  int at_[Items][2];  // where a pair's pieces lie; from dim_ on: nowhere
};

// Whether a head can be taken in pieces of 16 bytes.
template <typename T>
bool has_whole_pieces(const RopeKvWriteArgs& a) {
  const auto on_16_bytes = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int64_t half = a.rotary_dim / 2, rest = a.head_dim - a.rotary_dim;
  return half % kVecSize<T> == 0 && rest % (2 * kVecSize<T>) == 0 && on_16_bytes(a.qkv) && on_16_bytes(a.q) &&
         on_16_bytes(a.k_cache) && on_16_bytes(a.v_cache) && on_16_bytes(a.cos_sin);
}

}  // namespace tinyserve::cuda
