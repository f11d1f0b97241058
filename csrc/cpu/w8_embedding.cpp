// w8_embedding.cpp — rows of a weight in 8 bits, as of an embedding that is also the output layer. A row is scattered
// over its tile, a word in every 128 bytes: slow for one row, nothing beside what a token costs otherwise.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

constexpr int kBytes = 4;  // codes in one word

template <typename T>
void read_row(const W8EmbeddingArgs& a, int64_t row, T* to) {
  const int64_t tile = row / kPackColumns, within = row % kPackColumns, groups = a.k / a.group_size;
  for (int64_t begin = 0; begin < a.k; begin += kInt8Group / 2) {  // the smaller of the two sizes of groups
    const float scale = a.scales[(tile * groups + begin / a.group_size) * kPackColumns + within];
    const uint32_t* words = a.qweight + (tile * a.k + begin) / kBytes * kPackColumns + within;
    float values[kInt8Group / 2];
    for (int k = 0; k < kInt8Group / 2; ++k) {
      const uint32_t word = words[(k / 8 * 2 + k % 2) * kPackColumns];
      values[k] = float(int(word >> (k % 8 / 2 * 8) & 0xFF) - kMiddleCode) * scale;
    }
    for (int k = 0; k < kInt8Group / 2; k += kWidth) store(to + begin + k, load(values + k));
  }
}

}  // namespace

void w8_embedding(const W8EmbeddingArgs& a) {
  dispatch(a.dtype, [&]<typename T>(T*) {
    parallel_for(a.tokens, 1 + 4096 / a.k, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) read_row(a, a.rows[t], static_cast<T*>(a.y) + t * a.k);
    });
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
