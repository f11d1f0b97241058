// w8a8_linear.cpp — int8_product.h with 8-bit weights, as of the output layer.
#include "int8_product.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

struct Columns8 {
  const uint32_t* words;  // of k = 0
  const float* scales;    // of group 0

  static Columns8 at(const Int8LinearArgs& a, int64_t column) {
    const int64_t tile = column / kPackColumns, within = column % kPackColumns;
    return {.words = a.qweight + tile * a.k / 4 * kPackColumns + within,
            .scales = static_cast<const float*>(a.qparams) + tile * (a.k / a.group_size) * kPackColumns + within};
  }
  static IntVec dot(IntVec sums, UintVec codes, int32_t x) { return dot4_of_bytes(sums, codes, x); }

  IntegerParams load_integer_params(int64_t group) const {
    return {.scale = load(scales + group * kPackColumns), .zero = IntVec{} + kMiddleInDot};
  }
  template <Reuse kReuse>
  void load_bytes(int64_t k, UintVec& even, UintVec& odd) const {
    const uint32_t* at = words + k / 4 * kPackColumns;
    prefetch_words<kReuse>(at);
    prefetch_words<kReuse>(at + kPackColumns);
    even = load_as<UintVec>(at);
    odd = load_as<UintVec>(at + kPackColumns);
  }
};

}  // namespace

void w8a8_linear(const Int8LinearArgs& args) { int8_product<Columns8>(args); }

}  // namespace tinyserve::cpu::TINYSERVE_ISA
