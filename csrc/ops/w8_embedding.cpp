// w8_embedding.cpp — checks and allocation; the layout is in kernels.h, the work in cpu/.
#include "tensors.h"

namespace tinyserve {

Tensor w8_embedding(const Tensor& rows, const Tensor& qweight, const Tensor& scales, int64_t n, ScalarType dtype) {
  check_dim(rows, "rows", 1, "[T]");
  check_dim(qweight, "qweight", 4, "[N/32, K/8, 2, 32]");
  const int64_t tokens = rows.size(0), tiles = (n + kPackColumns - 1) / kPackColumns, k = qweight.size(1) * 8;
  const int64_t group_size = k % kInt8Group == 0 ? kInt8Group : kInt8Group / 2;
  check_tensor(rows, "rows", {tokens}, ScalarType::Int, qweight);
  check_tensor(qweight, "qweight", {tiles, k / 8, 2, kPackColumns}, ScalarType::Int, qweight);
  check_tensor(scales, "scales", {tiles, k / group_size, kPackColumns}, ScalarType::Float, qweight);
  check_range("rows", static_cast<const int32_t*>(rows.data_ptr()), tokens, 0, n);

  const DeviceGuard guard(qweight.get_device());
  Tensor y = allocate(scales, {tokens, k}, dtype);
  const W8EmbeddingArgs args{
      .rows = static_cast<const int32_t*>(rows.data_ptr()),
      .qweight = static_cast<const uint32_t*>(qweight.data_ptr()),
      .scales = static_cast<const float*>(scales.data_ptr()),
      .y = y.data_ptr(),
      .tokens = tokens,
      .k = k,
      .group_size = group_size,
      .dtype = to_dtype(y, "dtype"),
  };
  if (tokens > 0) backend::w8_embedding(args, current_stream(qweight));
  return y;
}

}  // namespace tinyserve
