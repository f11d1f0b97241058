// w4a16_pack.cpp — codes, scales and zeros into the layout of kernels.h. Once per weight, at load.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

constexpr uint64_t kAboveFifteen = 0xF0F0F0F0F0F0F0F0u;

// Eight codes, a byte each, to a nibble each in the same order.
uint32_t pack_codes(uint64_t codes) {
  uint64_t pairs = (codes | codes >> 4) & 0x00FF00FF00FF00FFu;
  pairs = (pairs | pairs >> 8) & 0x0000FFFF0000FFFFu;
  return uint32_t(pairs | pairs >> 16);
}

// Returns the bits of all codes seen, one on top of the other, to tell whether any is above 15.
uint64_t pack_words(const W4A16PackArgs& a, int64_t tile) {
  uint32_t* words = a.qweight + tile * (a.k / kPackFactor) * kPackColumns;
  uint64_t seen = 0;
  for (int64_t k = 0; k < a.k; k += kPackFactor) {
    for (int column = 0; column < kPackColumns; ++column) {
      const int64_t n = tile * kPackColumns + column;
      const uint64_t codes = n < a.n ? load_as<uint64_t>(a.codes + n * a.k + k) : 0;
      seen |= codes;
      *words++ = pack_codes(codes);
    }
  }
  return seen;
}

float scale_at(const W4A16PackArgs& a, int64_t i) {
  float value[kWidth];
  dispatch(a.scale_dtype, [&]<typename T>(T*) { store(value, load_first(static_cast<const T*>(a.scales) + i, 1)); });
  return value[0];
}

void pack_params(const W4A16PackArgs& a, int64_t tile) {
  const bool half = a.scale_dtype == Dtype::kHalf;
  const int64_t groups = a.k / a.group_size, bytes = half ? kParamBytesHalf : kParamBytesFloat;
  for (int64_t group = 0; group < groups; ++group) {
    uint8_t* to = a.qparams + (tile * groups + group) * bytes;
    memset(to, 0, bytes);
    for (int column = 0; column < kPackColumns && tile * kPackColumns + column < a.n; ++column) {
      const int64_t from = (tile * kPackColumns + column) * groups + group;
      if (half) {
        memcpy(to + column * 2, static_cast<const Half*>(a.scales) + from, 2);
      } else {
        const float scale = scale_at(a, from);
        memcpy(to + column * 4, &scale, 4);
      }
      to[bytes - kPackColumns + column] = a.zeros[from];
    }
  }
}

}  // namespace

void w4a16_pack(const W4A16PackArgs& args) {
  const int64_t tiles = (args.n + kPackColumns - 1) / kPackColumns;
  parallel_for(tiles, 1 + 100000 / (args.k * kPackColumns), [&](int64_t begin, int64_t end) {
    uint64_t seen = 0;
    for (int64_t tile = begin; tile < end; ++tile) {
      seen |= pack_words(args, tile);
      pack_params(args, tile);
    }
    if (seen & kAboveFifteen) args.faults[kCodeFault] = 1;  // threads can only write the same value
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
