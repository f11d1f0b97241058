// rms_norm.cpp — CPU twin of cuda/rms_norm.cu: a row is read twice, the second time from the first-level cache.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

template <typename T>
void norm_row(const T* x, const T* weight, T* residual, T* y, int64_t channels, float eps) {
  Vec squares = {};
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vec h = load_part(x + c, channels - c);
    if (residual != nullptr) {
      store_part(residual + c, h + load_part(residual + c, channels - c), channels - c);
      h = load_part(residual + c, channels - c);  // as rounded: the norm is of what is stored
    }
    squares += h * h;
  }
  const Vec scale = broadcast(1.f / __builtin_sqrtf(sum(squares) / float(channels) + eps));
  const T* from = residual != nullptr ? residual : x;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t count = channels - c;
    store_part(y + c, load_part(from + c, count) * scale * load_part(weight + c, count), count);
  }
}

template <typename T>
void run(const RmsNormArgs& a) {
  const int64_t grain = 1 + 16384 / (a.channels + 1);  // about 10 us of work
  parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t * a.channels;
      norm_row(static_cast<const T*>(a.x) + row, static_cast<const T*>(a.weight),
               a.residual ? static_cast<T*>(a.residual) + row : nullptr, static_cast<T*>(a.y) + row, a.channels, a.eps);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
