// rope_kv_write.cpp — rotary positions for queries and keys, and the way of keys and values into the paged cache.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

template <typename T, typename To>
void convert(const T* from, To* to, int64_t size) {
  for (int64_t i = 0; i < size; i += kWidth) store_part(to + i, load_part(from + i, size - i), size - i);
}

// One head [D]; `turn` holds R/2 cosines, then R/2 sines.
template <typename T, typename To>
void rotate(const T* from, const float* turn, To* to, int64_t rotary_dim, int64_t head_dim) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; i += kWidth) {
    const int64_t count = half - i;
    const Vec cos = load_part(turn + i, count), sin = load_part(turn + half + i, count);
    const Vec first = load_part(from + i, count), second = load_part(from + half + i, count);
    store_part(to + i, first * cos - second * sin, count);
    store_part(to + half + i, second * cos + first * sin, count);
  }
  convert(from + rotary_dim, to + rotary_dim, head_dim - rotary_dim);
}

// One head [D] as int8, and its scale; a NaN or infinity makes the scale NaN.
void round_head(const float* head, int64_t head_dim, int8_t* codes, float* scale) {
  Vec largest = {}, not_finite = {};
  for (int64_t i = 0; i < head_dim; i += kWidth) {
    const Vec value = load_part(head + i, head_dim - i), magnitude = value < 0.0f ? -value : value;
    largest = select(magnitude > largest, magnitude, largest);
    not_finite += value * 0.0f;
  }
  *scale = max(largest) / kMaxCode + sum(not_finite);
  const float inverse = *scale > 0.0f ? 1.0f / *scale : 0.0f;
  for (int64_t i = 0; i < head_dim; i += kWidth) {
    const IntVec rounded = round_to_int(load_part(head + i, head_dim - i) * inverse);
    const SignedByteVec bytes = __builtin_convertvector(rounded, SignedByteVec);
    memcpy(codes + i, &bytes, head_dim - i < kWidth ? head_dim - i : kWidth);
  }
}

// One key [D] into its place in a block.
template <typename T>
void put_key(const T* key, T* to, int64_t head_dim, int64_t stride) {
  if (stride == 1) {
    memcpy(to, key, head_dim * sizeof(T));
  } else {
    for (int64_t d = 0; d < head_dim; ++d) to[d * stride] = key[d];
  }
}

template <typename T>
void run_token(const RopeKvWriteArgs& a, int64_t t) {
  const int64_t dim = a.head_dim;
  const float* turn = a.cos_sin + a.positions[t] * a.rotary_dim;
  const T* head = static_cast<const T*>(a.qkv) + t * (a.num_heads + 2 * a.num_kv_heads) * dim;
  for (int64_t h = 0; h < a.num_heads; ++h, head += dim)
    rotate(head, turn, static_cast<T*>(a.q) + (t * a.num_heads + h) * dim, a.rotary_dim, dim);
  if (a.slots[t] < 0) return;
  const int64_t block = a.slots[t] / a.block_size, offset = a.slots[t] % a.block_size;
  for (int64_t h = 0; h < a.num_kv_heads; ++h, head += dim) {
    const int64_t page = (block * a.num_kv_heads + h) * a.block_size, row = page + offset;
    const int64_t key_at = page * dim + offset * a.key_strides.key;
    const T* value = head + a.num_kv_heads * dim;
    if (a.k_scales == nullptr) {
      T key[kMaxHeadDim];
      rotate(head, turn, key, a.rotary_dim, dim);
      put_key(key, static_cast<T*>(a.k_cache) + key_at, dim, a.key_strides.channel);
      memcpy(static_cast<T*>(a.v_cache) + row * dim, value, dim * sizeof(T));
      continue;
    }
    float exact[kMaxHeadDim];
    rotate(head, turn, exact, a.rotary_dim, dim);
    int8_t codes[kMaxHeadDim];
    round_head(exact, dim, codes, a.k_scales + row);
    put_key(codes, static_cast<int8_t*>(a.k_cache) + key_at, dim, a.key_strides.channel);
    convert(value, exact, dim);
    round_head(exact, dim, static_cast<int8_t*>(a.v_cache) + row * dim, a.v_scales + row);
  }
}

template <typename T>
void run(const RopeKvWriteArgs& a) {
  const int64_t elements = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
  parallel_for(a.tokens, 1 + 16384 / (elements + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) run_token<T>(a, t);
  });
}

}  // namespace

void rope_kv_write(const RopeKvWriteArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
