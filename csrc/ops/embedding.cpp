// embedding.cpp — checks and allocation; the work is in cpu/.
#include "tensors.h"

namespace tinyserve {

Tensor embedding(const Tensor& rows, const Tensor& weight) {
  check_dim(rows, "rows", 1, "[T]");
  check_dim(weight, "weight", 2, "[V, C]");
  const int64_t tokens = rows.size(0), channels = weight.size(1);
  to_dtype(weight, "weight");
  check_contiguous(weight, "weight");
  check_tensor(rows, "rows", {tokens}, ScalarType::Int, weight);
  check_range("rows", static_cast<const int32_t*>(rows.data_ptr()), tokens, 0, weight.size(0));

  const DeviceGuard guard(weight.get_device());
  Tensor y = allocate(weight, {tokens, channels});
  const EmbeddingArgs args{
      .rows = static_cast<const int32_t*>(rows.data_ptr()),
      .weight = weight.data_ptr(),
      .y = y.data_ptr(),
      .tokens = tokens,
      .row_bytes = channels * int64_t(weight.element_size()),
  };
  backend::embedding(args, current_stream(weight));
  return y;
}

}  // namespace tinyserve
