// vec_math.h — what vec.h's vectors lack for attention and activations: powers of two.
#pragma once

#include "vec.h"

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

}  // namespace tinyserve::cpu::TINYSERVE_ISA
