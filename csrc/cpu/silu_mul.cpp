// silu_mul.cpp — the gate of an MLP: silu(x) = x / (1 + e^-x), times the other half. Bound by memory.
#include "vec_math.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

Vec silu(Vec x) {
  const Vec exponent = x * -kLog2E;
  // Beyond 2^126 the quotient is 0 to rounding already; the comparison leaves a NaN as it is.
  return x / (1.f + exp2(select(exponent > 126.f, broadcast(126.f), exponent)));
}

template <typename T>
void run(const SiluMulArgs& a) {
  const auto* gate_up = static_cast<const T*>(a.gate_up);
  auto* y = static_cast<T*>(a.y);
  const int64_t grain = 1 + 16384 / (a.size + 1);  // rows that are worth a thread
  parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = gate_up + t * 2 * a.size;
      for (int64_t i = 0; i < a.size; i += kWidth) {
        const int64_t count = a.size - i;
        store_part(y + t * a.size + i, silu(load_part(gate + i, count)) * load_part(gate + a.size + i, count), count);
      }
    }
  });
}

}  // namespace

void silu_mul(const SiluMulArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
