// w4a16_pack.cpp — checks and allocation; the layouts are in kernels.h, the work in cpu/ and cuda/.
//
// What the kernel finds in the values is read back before the op returns: on CUDA this waits for the device, once per
// weight, at load, where an error still has a weight to name.
#include "packed.h"

namespace tinyserve {

std::tuple<Tensor, Tensor> w4a16_pack(const Tensor& codes, const Tensor& scales, const Tensor& zeros,
                                      std::optional<ScalarType> dtype) {
  check_dim(codes, "codes", 2, "[N, K]");
  check_dim(scales, "scales", 2, "[N, K/G]");
  const int64_t n = codes.size(0), k = codes.size(1), groups = scales.size(1);
  STD_TORCH_CHECK(k > 0 && k % 32 == 0, "K must be a positive multiple of 32, got K=", k);
  STD_TORCH_CHECK(groups > 0 && k % groups == 0, "scales must be [N, K/G] with G dividing K=", k, ", got ",
                  shape(scales.sizes()));
  const int64_t group_size = k / groups;
  check_group_size(k, group_size);
  check_tensor(codes, "codes", {n, k}, ScalarType::Byte, codes);
  const Dtype scale_dtype = to_dtype(scales, "scales");
  check_tensor(scales, "scales", {n, groups}, scales.scalar_type(), codes);
  check_tensor(zeros, "zeros", {n, groups}, ScalarType::Byte, codes);

  const DeviceGuard guard(codes.get_device());
  const ScalarType kept = backend::kept_scales(scales.scalar_type(), dtype);
  const PackedSizes sizes = backend::packed_sizes(n, k, group_size, kept);
  Tensor qweight = torch::stable::new_empty(codes, sizes.qweight, ScalarType::Int);
  Tensor qparams = torch::stable::new_empty(codes, sizes.qparams, sizes.params);
  if (n == 0) return {qweight, qparams};
  const Tensor faults = torch::stable::new_zeros(codes, {kPackFaults}, ScalarType::Int);
  const W4A16PackArgs args{
      .codes = static_cast<const uint8_t*>(codes.data_ptr()),
      .scales = scales.data_ptr(),
      .zeros = static_cast<const uint8_t*>(zeros.data_ptr()),
      .qweight = static_cast<uint32_t*>(qweight.data_ptr()),
      .qparams = static_cast<uint8_t*>(qparams.data_ptr()),
      .faults = static_cast<int32_t*>(faults.data_ptr()),
      .n = n,
      .k = k,
      .group_size = group_size,
      .scale_dtype = scale_dtype,
      .kept_dtype = to_dtype(kept, "scales"),
  };
  backend::w4a16_pack(args, current_stream(codes));
  const Tensor found_here = torch::stable::to(faults, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const int32_t* found = static_cast<const int32_t*>(found_here.data_ptr());
  STD_TORCH_CHECK(!found[kCodeFault], "codes must be 0..15, got a larger one");
  STD_TORCH_CHECK(!found[kScaleFault], "scales must be finite in ", toString(kept), ", got one that is not");
  STD_TORCH_CHECK(!found[kZeroFault], "zeros must be 0..", cuda::kMaxZero, ", got a larger one");
  return {qweight, qparams};
}

}  // namespace tinyserve
