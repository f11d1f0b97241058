// sample.cpp — checks and allocation; the kernel is CUDA's. A CPU draws with torch's own functions (engine/draw.py).
#include "tensors.h"

#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)

namespace tinyserve {

Tensor sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
              const Tensor& min_p, const Tensor& uniform) {
  check_dim(logits, "logits", 2, "[R, V]");
  const int64_t rows = logits.size(0), vocab_size = logits.size(1);
  const Dtype dtype = to_dtype(logits, "logits");
  check_contiguous(logits, "logits");
  STD_TORCH_CHECK(1 <= vocab_size && vocab_size <= kMaxVocab, "logits must have 1 to ", kMaxVocab, " columns, got ",
                  vocab_size);
  check_tensor(temperature, "temperature", {rows}, ScalarType::Float, logits);
  check_tensor(top_k, "top_k", {rows}, ScalarType::Int, logits);
  check_tensor(top_p, "top_p", {rows}, ScalarType::Float, logits);
  check_tensor(min_p, "min_p", {rows}, ScalarType::Float, logits);
  check_tensor(uniform, "uniform", {rows}, ScalarType::Double, logits);

  const DeviceGuard guard(logits.get_device());
  Tensor tokens = allocate(logits, {rows}, ScalarType::Int);
  if (rows == 0) return tokens;
  const SampleArgs args{
      .logits = logits.data_ptr(),
      .temperature = static_cast<const float*>(temperature.data_ptr()),
      .top_k = static_cast<const int32_t*>(top_k.data_ptr()),
      .top_p = static_cast<const float*>(top_p.data_ptr()),
      .min_p = static_cast<const float*>(min_p.data_ptr()),
      .uniform = static_cast<const double*>(uniform.data_ptr()),
      .tokens = static_cast<int32_t*>(tokens.data_ptr()),
      .rows = rows,
      .vocab_size = vocab_size,
      .dtype = dtype,
  };
  backend::sample(args, current_stream(logits));
  return tokens;
}

}  // namespace tinyserve

#endif
