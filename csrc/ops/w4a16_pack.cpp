// w4a16_pack.cpp — checks and allocation; the layout is in kernels.h, the work in cpu/ and cuda/.
#include "tensors.h"

namespace tinyserve {

std::tuple<Tensor, Tensor> w4a16_pack(const Tensor& codes, const Tensor& scales, const Tensor& zeros) {
  check_dim(codes, "codes", 2, "[N, K]");
  check_dim(scales, "scales", 2, "[N, K/G]");
  const int64_t n = codes.size(0), k = codes.size(1), groups = scales.size(1);
  STD_TORCH_CHECK(k > 0 && k % 32 == 0, "K must be a positive multiple of 32, got K=", k);
  STD_TORCH_CHECK(groups > 0 && k % groups == 0, "scales must be [N, K/G] with G dividing K=", k, ", got ",
                  shape(scales.sizes()));
  const int64_t group_size = k / groups;
  STD_TORCH_CHECK(group_size == 32 || group_size == 64 || group_size == 128 || group_size == k,
                  "the group size must be 32, 64, 128 or K=", k, ", got ", group_size, " (", groups, " groups)");
  check_tensor(codes, "codes", {n, k}, ScalarType::Byte, codes);
  const Dtype scale_dtype = to_dtype(scales, "scales");
  check_tensor(scales, "scales", {n, groups}, scales.scalar_type(), codes);
  check_tensor(zeros, "zeros", {n, groups}, ScalarType::Byte, codes);

  const DeviceGuard guard(codes.get_device());
  const int64_t tiles = (n + kPackColumns - 1) / kPackColumns;
  const int64_t param_bytes = scale_dtype == Dtype::kHalf ? kParamBytesHalf : kParamBytesFloat;
  Tensor qweight = allocate(codes, {tiles, k / kPackFactor, kPackColumns}, ScalarType::Int);
  Tensor qparams = allocate(codes, {tiles, groups, param_bytes});
  bool codes_fit = true;
  const W4A16PackArgs args{
      .codes = static_cast<const uint8_t*>(codes.data_ptr()),
      .scales = scales.data_ptr(),
      .zeros = static_cast<const uint8_t*>(zeros.data_ptr()),
      .qweight = static_cast<uint32_t*>(qweight.data_ptr()),
      .qparams = static_cast<uint8_t*>(qparams.data_ptr()),
      .codes_fit = &codes_fit,
      .n = n,
      .k = k,
      .group_size = group_size,
      .scale_dtype = scale_dtype,
  };
  backend::w4a16_pack(args, current_stream(codes));
  STD_TORCH_CHECK(codes_fit, "codes must be 0..15, got a larger one");
  return {qweight, qparams};
}

}  // namespace tinyserve
