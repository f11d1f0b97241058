// vec_math.h — what vec.h's vectors lack for attention and activations: powers of two and transposition.
#pragma once

#include "vec.h"

#include <utility>

namespace tinyserve::cpu::TINYSERVE_ISA {

constexpr float kLog2E = 1.44269504f;

// 2^x to 2 units in the last place; exactly 1 at 0, 0 below -126, not a number where x is none. For x up to 127.
inline Vec exp2(Vec x) {
  const Vec magic = broadcast(0x1.8p23f);  // its last bit is worth 1: adding it rounds x to an integer
  const Vec shifted = x + magic;
  const Vec fraction = x - (shifted - magic);  // in [-1/2, 1/2]
  Vec power = broadcast(1.535336188e-4f);      // Cephes' exp2f
  power = power * fraction + 1.339887440e-3f;
  power = power * fraction + 9.618437358e-3f;
  power = power * fraction + 5.550332471e-2f;
  power = power * fraction + 2.402264791e-1f;
  power = power * fraction + 6.931472029e-1f;
  power = power * fraction + 1.f;
  const UintVec exponent = (as_bits(shifted) - as_bits(magic)) << 23;
  return select(x < -126.f, Vec{}, as_float(as_bits(power) + exponent));
}

// Exchanges, for every pair of rows `Step` apart, the upper row's lanes with the lower's: one level of a transposition.
template <int Step, int... Lane>
void transpose_level(Vec (&rows)[kWidth], std::integer_sequence<int, Lane...>) {
  for (int i = 0; i < kWidth; ++i) {
    if (i & Step) continue;
    const Vec a = rows[i], b = rows[i + Step];
#if defined(__clang__)
    rows[i] = __builtin_shufflevector(a, b, (Lane & Step ? kWidth + Lane - Step : Lane)...);
    rows[i + Step] = __builtin_shufflevector(a, b, (Lane & Step ? kWidth + Lane : Lane + Step)...);
#else
    rows[i] = __builtin_shuffle(a, b, IntVec{(Lane & Step ? kWidth + Lane - Step : Lane)...});
    rows[i + Step] = __builtin_shuffle(a, b, IntVec{(Lane & Step ? kWidth + Lane : Lane + Step)...});
#endif
  }
}

// Lane j of row i becomes lane i of row j.
template <int Step = 1>
inline void transpose(Vec (&rows)[kWidth]) {
  if constexpr (Step < kWidth) {
    transpose_level<Step>(rows, std::make_integer_sequence<int, kWidth>{});
    transpose<2 * Step>(rows);
  }
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
