// w4a16_run.h — starts a kernel of the product; for the CPU's, which know the product and the bias alone, also what
// follows: SiLU(gate) * up and the residual, from the rounded product.
#pragma once

#include "w4a16.h"

#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)

namespace tinyserve {

template <typename Kernel>
void run_w4a16(const Kernel& kernel, const W4A16Call& call, const Tensor& x) {
  kernel(call.args, current_stream(x));
}

}  // namespace tinyserve

#else

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>

namespace tinyserve {

// y from the rounded product [M, N]
template <typename T>
void finish_w4a16(const T* product, const W4A16Args& a) {
  const int64_t columns = a.silu_mul ? a.n / 2 : a.n;
  const T* residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  cpu::run_recorded([=] {
    cpu::parallel_for(a.m, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * columns; i < end * columns; ++i) {
        float value;
        if (a.silu_mul) {
          const int64_t gate = i / kGateRows * 2 * kGateRows + i % kGateRows;  // a row's columns are whole tiles
          const float g = float(product[gate]);
          value = g / (1 + std::exp(-g)) * float(product[gate + kGateRows]);
        } else {
          value = float(product[i]);
        }
        y[i] = T(residual == nullptr ? value : value + float(residual[i]));
      }
    });
  });
}

template <typename Kernel>
void run_w4a16(const Kernel& kernel, const W4A16Call& call, const Tensor& x) {
  W4A16Args product = call.args;
  if (!product.silu_mul && product.residual == nullptr) return kernel(product, nullptr);
  const Tensor whole = allocate(x, {product.m, product.n});
  product.y = whole.data_ptr();
  kernel(product, nullptr);
  switch (product.dtype) {
    case Dtype::kFloat:
      return finish_w4a16(static_cast<const float*>(product.y), call.args);
    case Dtype::kHalf:
      return finish_w4a16(static_cast<const torch::headeronly::Half*>(product.y), call.args);
    case Dtype::kBFloat16:
      return finish_w4a16(static_cast<const torch::headeronly::BFloat16*>(product.y), call.args);
  }
}

}  // namespace tinyserve

#endif
