// layer_norm.cpp — CPU twin of cuda/layer_norm.cu: a row is read three times, twice from the first-level cache.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {
namespace {

// h - mean of `count` elements; 0 past them.
Vec deviations(Vec h, int64_t count, Vec mean) {
  const Vec d = h - mean;
  if (count >= kWidth) return d;
  float lanes[kWidth];
  store(lanes, d);
  return load_first(lanes, count);
}

template <typename T>
void norm_row(const T* x, const T* weight, const T* bias, T* residual, T* y, int64_t channels, float eps) {
  // Sums are of what is left of the row's first element: beside a mean far beyond the deviation, rounding would take
  // that.
  float first[kWidth];
  store(first, load_part(x, 1) + (residual != nullptr ? load_part(residual, 1) : Vec{}));
  const Vec pivot = broadcast(first[0]);
  Vec total = {};
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vec h = load_part(x + c, channels - c);
    if (residual != nullptr) {
      store_part(residual + c, h + load_part(residual + c, channels - c), channels - c);
      h = load_part(residual + c, channels - c);  // as rounded: the norm is of what is stored
    }
    total += deviations(h, channels - c, pivot);
  }
  const T* from = residual != nullptr ? residual : x;
  const Vec rough_mean = pivot + broadcast(sum(total) / float(channels));
  Vec deviation = {}, squares = {};
  for (int64_t c = 0; c < channels; c += kWidth) {
    const Vec d = deviations(load_part(from + c, channels - c), channels - c, rough_mean);
    deviation += d;
    squares += d * d;
  }
  const float rest = sum(deviation) / float(channels);  // what rounding has left in the mean
  const float variance = sum(squares) / float(channels) - rest * rest;
  const Vec scale = broadcast(1.f / __builtin_sqrtf(variance + eps));
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t count = channels - c;
    Vec result = (load_part(from + c, count) - rough_mean - rest) * scale * load_part(weight + c, count);
    if (bias != nullptr) result += load_part(bias + c, count);
    store_part(y + c, result, count);
  }
}

template <typename T>
void run(const LayerNormArgs& a) {
  const int64_t grain = 1 + 16384 / (a.channels + 1);  // about 10 us of work
  parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t * a.channels;
      norm_row(static_cast<const T*>(a.x) + row, static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
               a.residual ? static_cast<T*>(a.residual) + row : nullptr, static_cast<T*>(a.y) + row, a.channels, a.eps);
    }
  });
}

}  // namespace

void layer_norm(const LayerNormArgs& args) {
  dispatch(args.dtype, [&]<typename T>(T*) { run<T>(args); });
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
