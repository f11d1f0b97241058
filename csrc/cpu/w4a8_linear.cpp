// w4a8_linear.cpp — int8_product.h with 4-bit weights: nibbles become bytes in registers.
#include "int8_product.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

struct Columns4 : PackedColumns {
  static Columns4 at(const Int8LinearArgs& a, int64_t column) { return {PackedColumns::at(a, column)}; }
  static IntVec dot(IntVec sums, UintVec codes, int32_t x) { return dot4(sums, codes, x); }

  template <Reuse kReuse>
  void load_bytes(int64_t k, UintVec& even, UintVec& odd) const {
    const UintVec words = load_words<kReuse>(k);
    even = words & 0x0F0F0F0Fu;
    odd = (words >> 4) & 0x0F0F0F0Fu;
  }
};

}  // namespace

void w4a8_linear(const Int8LinearArgs& args) { int8_product<Columns4>(args); }

}  // namespace tinyserve::cpu::TINYSERVE_ISA
