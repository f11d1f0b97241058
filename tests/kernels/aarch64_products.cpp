// aarch64_products.cpp — the products of the CPU kernels against fp64, as a program of its own: test_aarch64.py
// compiles it for another processor and runs it under an emulator, where there is no torch. Prints one relative error
// per line.
#include "../../csrc/kernels.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace tinyserve::cpu {

void run_parallel(int64_t size, int64_t, ParallelBody* body, void* context) {
  if (size > 0) body(0, size, context);
}

namespace dotprod {
#define TINYSERVE_DECLARE(op, Args) void op(const Args& args);
TINYSERVE_CPU_KERNELS(TINYSERVE_DECLARE)
}  // namespace dotprod

namespace {

std::mt19937 random_engine(0);
float normal() { return std::normal_distribution<float>()(random_engine); }
int below(int limit) { return int(random_engine() % unsigned(limit)); }

struct Shape {
  int64_t m, n, k, group;
};

// x as the int8 kernels round it
std::vector<double> rounded(const std::vector<float>& x, int64_t group) {
  std::vector<double> out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += size_t(group)) {
    float largest = 0;
    for (int64_t i = 0; i < group; ++i) largest = std::fmax(largest, std::fabs(x[begin + size_t(i)]));
    const float scale = largest / 127, inverse = 1 / scale;
    for (int64_t i = 0; i < group; ++i) {
      out[begin + size_t(i)] = double(scale) * std::nearbyint(x[begin + size_t(i)] * inverse);
    }
  }
  return out;
}

void print_error(const char* name, const Shape& s, const std::vector<double>& x, const std::vector<double>& weight,
                 const std::vector<float>& y) {
  double wrong = 0, all = 0;
  for (int64_t m = 0; m < s.m; ++m) {
    for (int64_t n = 0; n < s.n; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < s.k; ++k) sum += x[size_t(m * s.k + k)] * weight[size_t(n * s.k + k)];
      wrong += std::pow(y[size_t(m * s.n + n)] - sum, 2);
      all += sum * sum;
    }
  }
  printf("%s %g\n", name, std::sqrt(wrong / all));
}

void run(const Shape& s) {
  const int64_t tiles = (s.n + kPackColumns - 1) / kPackColumns, groups = s.k / s.group, x_group = int8_group(s.group);
  std::vector<float> x(size_t(s.m * s.k)), y(size_t(s.m * s.n));
  std::vector<Int8Group> x_groups(size_t(s.m * s.k / x_group));
  std::vector<double> weight(size_t(s.n * s.k)), exact_x;
  for (float& value : x) value = normal();
  exact_x.assign(x.begin(), x.end());
  std::vector<int8_t> x_codes(x.size());

  std::vector<uint8_t> codes(size_t(s.n * s.k)), zeros(size_t(s.n * groups));
  std::vector<__fp16> scales(size_t(s.n * groups));
  for (uint8_t& code : codes) code = uint8_t(below(16));
  for (uint8_t& zero : zeros) zero = uint8_t(below(16));
  for (__fp16& scale : scales) scale = __fp16(0.01f + 0.001f * float(below(20)));
  for (size_t i = 0; i < codes.size(); ++i) {
    const size_t g = i / size_t(s.group);
    weight[i] = (int(codes[i]) - int(zeros[g])) * double(scales[g]);
  }
  std::vector<uint32_t> qweight(size_t(tiles * s.k / kPackFactor * kPackColumns));
  std::vector<uint8_t> qparams(size_t(tiles * groups * kParamBytesHalf));
  int32_t faults[kPackFaults] = {};
  dotprod::w4a16_pack({.codes = codes.data(),
                       .scales = scales.data(),
                       .zeros = zeros.data(),
                       .qweight = qweight.data(),
                       .qparams = qparams.data(),
                       .faults = faults,
                       .n = s.n,
                       .k = s.k,
                       .group_size = s.group,
                       .scale_dtype = Dtype::kHalf,
                       .kept_dtype = Dtype::kHalf});
  Int8LinearArgs rounding = {.x = x.data(),
                             .codes = x_codes.data(),
                             .groups = x_groups.data(),
                             .qweight = qweight.data(),
                             .qparams = qparams.data(),
                             .bias = nullptr,
                             .y = y.data(),
                             .m = s.m,
                             .n = s.n,
                             .k = s.k,
                             .group_size = s.group,
                             .x_group = x_group,
                             .half_scales = true,
                             .dtype = Dtype::kFloat};
  dotprod::w4a8_linear(rounding);
  print_error("w4a8_linear", s, rounded(x, x_group), weight, y);
  W4A16Args exact = {};
  exact.x = x.data();
  exact.qweight = qweight.data();
  exact.qparams = qparams.data();
  exact.y = y.data();
  exact.m = s.m, exact.n = s.n, exact.k = s.k, exact.group_size = s.group;
  exact.half_scales = true;
  s.m <= kGemvMaxRows ? dotprod::w4a16_gemv(exact) : dotprod::w4a16_gemm(exact);
  print_error("w4a16", s, exact_x, weight, y);

  const int64_t group8 = s.k % kInt8Group == 0 ? kInt8Group : 32;
  std::vector<float> wide(codes.size()), scales8(size_t(tiles * s.k / group8 * kPackColumns));
  std::vector<Int8Group> x_groups8(size_t(s.m * s.k / group8));
  for (float& value : wide) value = normal();
  const std::vector<double> wide_rounded = rounded(wide, group8);
  std::vector<uint32_t> qweight8(size_t(tiles * s.k / 4 * kPackColumns));
  dotprod::w8_pack({wide.data(), qweight8.data(), scales8.data(), s.n, s.k, group8, Dtype::kFloat});
  rounding.groups = x_groups8.data();
  rounding.qweight = qweight8.data();
  rounding.qparams = scales8.data();
  rounding.group_size = rounding.x_group = group8;
  dotprod::w8a8_linear(rounding);
  print_error("w8a8_linear", s, rounded(x, group8), wide_rounded, y);
}

}  // namespace
}  // namespace tinyserve::cpu

int main() {
  using tinyserve::cpu::Shape;
  for (const Shape& shape :
       {Shape{1, 33, 64, 32}, Shape{5, 100, 608, 32}, Shape{13, 70, 1152, 128}, Shape{26, 40, 544, 544}})
    tinyserve::cpu::run(shape);
}
