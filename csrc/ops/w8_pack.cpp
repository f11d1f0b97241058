// w8_pack.cpp — checks and allocation; the layout is in kernels.h, the work in cpu/.
#include "tensors.h"

namespace tinyserve {

std::tuple<Tensor, Tensor> w8_pack(const Tensor& weight) {
  check_dim(weight, "weight", 2, "[N, K]");
  check_contiguous(weight, "weight");
  const int64_t n = weight.size(0), k = weight.size(1);
  STD_TORCH_CHECK(k > 0 && k % 32 == 0, "K must be a positive multiple of 32, got K=", k);
  const int64_t group_size = k % kInt8Group == 0 ? kInt8Group : 32;
  const DeviceGuard guard(weight.get_device());
  const int64_t tiles = (n + kPackColumns - 1) / kPackColumns;
  Tensor qweight = allocate(weight, {tiles, k / 8, 2, kPackColumns}, ScalarType::Int);
  Tensor scales = allocate(weight, {tiles, k / group_size, kPackColumns}, ScalarType::Float);
  const W8PackArgs args{
      .weight = weight.data_ptr(),
      .qweight = static_cast<uint32_t*>(qweight.data_ptr()),
      .scales = static_cast<float*>(scales.data_ptr()),
      .n = n,
      .k = k,
      .group_size = group_size,
      .dtype = to_dtype(weight, "weight"),
  };
  if (n > 0) backend::w8_pack(args, current_stream(weight));
  return {qweight, scales};
}

}  // namespace tinyserve
