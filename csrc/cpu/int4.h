// int4.h — the only place where packed codes become numbers: kWidth columns (rows n of the weight) at once.
//
// The layout is in kernels.h. A nibble is masked where it lies, so a high one comes out as 16 times its code, which
// scale_high takes back. With fp16 scales each product below is exact in fp32: the weight is the dequantized one to the
// bit.
#pragma once

#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

// Sums run over so many k in one chain before they join the total, whatever the number of rows: a row's result does not
// depend on the rows beside it, and rounding errors stay small for large K.
constexpr int64_t kChunk = 256;

struct GroupParams {
  Vec scale, scale_high, offset;  // offset = -zero * scale
};

struct IntegerParams {
  Vec scale;
  IntVec zero;
};

// Where the columns [column, column + kWidth) of a packed weight lie; column is a multiple of kWidth, so in one tile.
struct PackedColumns {
  const uint32_t* words;  // of k = 0
  const uint8_t* params;  // of group 0
  int within;             // column in the tile
  bool half_scales;

  template <typename Args>  // W4A16Args or Int8LinearArgs
  static PackedColumns at(const Args& a, int64_t column) {
    const int64_t tile = column / kPackColumns;
    const int within = int(column % kPackColumns);
    return {.words = a.qweight + tile * a.k / kPackFactor * kPackColumns + within,
            .params = static_cast<const uint8_t*>(static_cast<const void*>(a.qparams)) +
                      tile * (a.k / a.group_size) * (a.half_scales ? kParamBytesHalf : kParamBytesFloat),
            .within = within,
            .half_scales = a.half_scales};
  }

  // The words with k .. k + 7, k a multiple of 8.
  template <Reuse kReuse>
  UintVec load_words(int64_t k) const {
    const uint32_t* at = words + k / kPackFactor * kPackColumns;
    prefetch_words<kReuse>(at);
    return load_as<UintVec>(at);
  }

  IntegerParams load_integer_params(int64_t group) const {
    const uint8_t* at = params + group * (half_scales ? kParamBytesHalf : kParamBytesFloat);
    return {.scale = half_scales ? load(reinterpret_cast<const Half*>(at) + within)
                                 : load(reinterpret_cast<const float*>(at) + within),
            .zero = bytes_to_int(at + kPackColumns * (half_scales ? 2 : 4) + within)};
  }

  GroupParams load_params(int64_t group) const {
    const auto [scale, zero] = load_integer_params(group);
    return {.scale = scale, .scale_high = scale * 0.0625f, .offset = -__builtin_convertvector(zero, Vec) * scale};
  }
};

// The weights of k in the low or the high half of each word's lowest byte.
template <bool High>
Vec dequantize(UintVec words, const GroupParams& p) {
  const UintVec code = words & (High ? 0xF0u : 0x0Fu);
  const Vec number = __builtin_convertvector(reinterpret_cast<IntVec>(code), Vec);
  return number * (High ? p.scale_high : p.scale) + p.offset;
}

// Calls f(begin, end, group) for the parts of [begin, end) that lie in one group.
template <typename F>
void for_each_group(int64_t begin, int64_t end, int64_t group_size, const F& f) {
  for (int64_t group = begin / group_size; begin < end; ++group) {
    const int64_t stop = (group + 1) * group_size < end ? (group + 1) * group_size : end;
    f(begin, stop, group);
    begin = stop;
  }
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
