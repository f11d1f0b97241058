// w8_pack.cpp — a weight in 8 bits, rounded to the nearest of 255 steps, in the layout of kernels.h. Once, at load.
#include "vec.h"

#include <cmath>

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

constexpr int kBytes = 4;  // codes in one word

// One group of one row, whose first word is at `words` and whose scale is at `scale`. NaN or infinity makes that NaN.
void pack_group(const float* weight, int64_t size, uint32_t* words, float* scale) {
  float largest = 0, not_finite = 0;
  for (int64_t k = 0; k < size; ++k) {
    largest = std::fmax(largest, std::fabs(weight[k]));
    not_finite += weight[k] * 0.0f;
  }
  *scale = largest / 127.0f + not_finite;
  const float inverse = *scale > 0 ? 1.0f / *scale : 0.0f;
  for (int64_t k = 0; k < size; k += 2 * kBytes) {
    for (int odd = 0; odd < 2; ++odd) {
      uint32_t word = 0;
      for (int i = 0; i < kBytes; ++i) {
        const float steps = inverse > 0 ? weight[k + 2 * i + odd] * inverse : 0.0f;
        const int code = int(std::nearbyint(steps)) + kMiddleCode;
        word |= uint32_t(code) << (8 * i);
      }
      words[(k / kBytes + odd) * kPackColumns] = word;
    }
  }
}

}  // namespace

void w8_pack(const W8PackArgs& a) {
  const int64_t tiles = (a.n + kPackColumns - 1) / kPackColumns, groups = a.k / a.group_size;
  dispatch(a.dtype, [&]<typename T>(T*) {
    parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kPackColumns; row < end * kPackColumns; ++row) {
        const int64_t tile = row / kPackColumns, within = row % kPackColumns;
        for (int64_t group = 0; group < groups; ++group) {
          float weight[kInt8Group] = {};
          const T* from = static_cast<const T*>(a.weight) + row * a.k + group * a.group_size;
          for (int64_t k = 0; row < a.n && k < a.group_size; k += kWidth) store(weight + k, load(from + k));
          pack_group(weight, a.group_size,
                     a.qweight + (tile * a.k + group * a.group_size) / kBytes * kPackColumns + within,
                     a.scales + (tile * groups + group) * kPackColumns + within);
        }
      }
    });
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
