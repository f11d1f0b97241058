// w4a16_dequantize.cpp — the weight [N, K] that a packed one stands for, row by row. Not on the way of any product:
// plain loops.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

struct Params {
  float scale, zero;
};

// Of one row of a tile; `params` are those of its group.
Params params_of(const uint8_t* params, bool half, int column) {
  const uint8_t zero = params[kPackColumns * (half ? 2 : 4) + column];
  float scale[kWidth];
  if (half) {
    store(scale, load_first(reinterpret_cast<const Half*>(params) + column, 1));
  } else {
    scale[0] = load_as<float>(params + column * 4);
  }
  return {scale[0], float(zero)};
}

template <typename T>
void dequantize_row(const W4A16DequantizeArgs& a, int64_t n, T* to) {
  const int64_t tile = n / kPackColumns, column = n % kPackColumns, groups = a.k / a.group_size;
  const bool half = a.scale_dtype == Dtype::kHalf;
  const int64_t bytes = half ? kParamBytesHalf : kParamBytesFloat;
  const uint32_t* words = a.qweight + tile * (a.k / kPackFactor) * kPackColumns + column;
  for (int64_t group = 0; group < groups; ++group) {
    const Params params = params_of(a.qparams + (tile * groups + group) * bytes, half, int(column));
    for (int64_t k = group * a.group_size; k < (group + 1) * a.group_size; k += kPackFactor) {
      const uint32_t word = words[k / kPackFactor * kPackColumns];
      float values[kPackFactor];
      for (int i = 0; i < kPackFactor; ++i) values[i] = (float(word >> (4 * i) & 0xF) - params.zero) * params.scale;
      for (int i = 0; i < kPackFactor; i += kWidth)
        store_part(to + k + i, load_part(values + i, kPackFactor - i), kPackFactor - i);
    }
  }
}

}  // namespace

void w4a16_dequantize(const W4A16DequantizeArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) {
    parallel_for(args.n, 1 + 10000 / args.k, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) dequantize_row(args, n, static_cast<T*>(args.weight) + n * args.k);
    });
  });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
