// silu_mul.cpp — checks and allocation; the arithmetic is in cpu/ and cuda/.
#include "tensors.h"

namespace tinyserve {

Tensor silu_mul(const Tensor& gate_up) {
  const Dtype dtype = to_dtype(gate_up, "gate_up");
  STD_TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up must be [T, 2*I], got ",
                  shape(gate_up.sizes()));
  check_contiguous(gate_up, "gate_up");
  const int64_t tokens = gate_up.size(0), size = gate_up.size(1) / 2;

  const DeviceGuard guard(gate_up.get_device());
  Tensor y = allocate(gate_up, {tokens, size});
  if (tokens == 0 || size == 0) return y;
  const SiluMulArgs args{
      .gate_up = gate_up.data_ptr(),
      .y = y.data_ptr(),
      .tokens = tokens,
      .size = size,
      .dtype = dtype,
  };
  backend::silu_mul(args, current_stream(gate_up));
  return y;
}

}  // namespace tinyserve
