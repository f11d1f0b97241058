// matrix.cpp — see matrix.h. Operands become floats once per warp; compiled with optimization, for the tests' time.
#include "matrix.h"

#include <bit>

namespace emulator {

void to_floats(const void* from, Element element, int count, float* to) {
  const auto* bits = static_cast<const uint16_t*>(from);
  if (element == Element::kBFloat16) {
    for (int i = 0; i < count; ++i) to[i] = std::bit_cast<float>(uint32_t(bits[i]) << 16);
    return;
  }
  for (int i = 0; i < count; ++i) {  // exponent and mantissa moved into place, then the exponent's bias set right
    const float value = std::bit_cast<float>(uint32_t(bits[i] & 0x7fff) << 13) * 0x1p112f;
    uint32_t word = std::bit_cast<uint32_t>(value);
    if (!(value < 0x1p16f)) word |= 0x7f800000;  // infinity and NaN
    to[i] = std::bit_cast<float>(word | uint32_t(bits[i] & 0x8000) << 16);
  }
}

void multiply(Multiply* const (&lanes)[32], Element element) {
  // a[0..3]: rows r and r + 8 of columns c, c + 1, then of columns c + 8, c + 9; b[0..1]: rows c, c + 1, c + 8, c + 9
  static constexpr int kFragments[] = {0, 1, 2, 3}, kWrongFragments[] = {0, 2, 1, 3};
  const auto& fragments = fault == Fault::kFragment ? kWrongFragments : kFragments;
  float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const int r = l / 4, c = 2 * (l % 4);
    float pair[8];
    to_floats(lanes[l]->a, element, 8, pair);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j) a[r + i % 2 * 8][c + i / 2 * 8 + j] = pair[fragments[i] * 2 + j];
    to_floats(lanes[l]->b, element, 4, pair);
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) b[c + i * 8 + j][r] = pair[i * 2 + j];
    for (int i = 0; i < 4; ++i) d[r + i / 2 * 8][c + i % 2] = lanes[l]->d[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < 32; ++l) {
    const int r = l / 4, c = 2 * (l % 4);
    for (int i = 0; i < 4; ++i) lanes[l]->d[i] = d[r + i / 2 * 8][c + i % 2];
  }
}

}  // namespace emulator
