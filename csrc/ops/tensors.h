// tensors.h — the Torch side of every op: checks that name what was expected and what came, the device guard, the
// stream.
//
// Everything in ops/ is compiled once per backend library; TINYSERVE_CUDA and TINYSERVE_EMULATED say for which. Only
// the LibTorch stable ABI is used, so one binary works with every torch from 2.10 on, and builds where torch has no
// CUDA.
#pragma once

#include "../kernels.h"
#include "ops.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <string>

namespace tinyserve {

using torch::headeronly::ScalarType;

#if defined(TINYSERVE_CUDA)
namespace backend = cuda;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;
inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream) == AOTI_TORCH_SUCCESS,
                  "no current CUDA stream");
  return stream;
}
#else
#if defined(TINYSERVE_EMULATED)
namespace backend = cuda;  // the CUDA kernels, run by the CPU on tensors in its memory
#else
namespace backend = cpu;
#endif
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline void* current_stream(const Tensor&) { return nullptr; }
#endif

// A tensor that nobody has written yet, where `like` lies; of its dtype where none is given.
#if defined(TINYSERVE_CUDA) || defined(TINYSERVE_EMULATED)
inline Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes,
                       std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, sizes, dtype);
}
#else  // tape.cpp: what a recording's calls work on must outlive them
Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes,
                std::optional<ScalarType> dtype = std::nullopt);
#endif

template <typename Sizes>
std::string shape(const Sizes& sizes) {
  std::ostringstream text;
  text << "[";
  bool first = true;
  for (const auto size : sizes) {
    text << (first ? "" : ", ") << size;
    first = false;
  }
  return text.str() + "]";
}

inline Dtype to_dtype(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Half:
      return Dtype::kHalf;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, name, " must be float16, bfloat16 or float32, got ", toString(dtype));
}
inline Dtype to_dtype(const Tensor& t, const char* name) { return to_dtype(t.scalar_type(), name); }

inline void check_contiguous(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous, got strides ", shape(t.strides()), " for sizes ",
                  shape(t.sizes()));
}

template <typename Sizes = std::initializer_list<int64_t>>
void check_shape(const Tensor& t, const char* name, const Sizes& sizes) {
  const bool same = t.sizes().size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), t.sizes().begin());
  STD_TORCH_CHECK(same, name, " must be ", shape(sizes), ", got ", shape(t.sizes()));
  check_contiguous(t, name);
}

// One tensor of an op: its sizes, dtype and layout, and that it lives where `like` does.
template <typename Sizes = std::initializer_list<int64_t>>
void check_tensor(const Tensor& t, const char* name, const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", toString(dtype), ", got ", toString(t.scalar_type()));
  check_shape(t, name, sizes);
  STD_TORCH_CHECK(t.device() == like.device(), name, " must be on the device of the other arguments");
}

inline void check_dim(const Tensor& t, const char* name, int64_t dim, const char* meaning) {
  STD_TORCH_CHECK(t.dim() == dim, name, " must be ", meaning, ", got ", shape(t.sizes()));
}

// That every value of an index tensor is in low..end - 1. For values in this machine's memory.
inline void check_range(const char* name, const int32_t* values, int64_t count, int64_t low, int64_t end) {
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(low <= values[i] && values[i] < end, name, " must be in ", low, "..", end - 1, ", got ", values[i]);
}

}  // namespace tinyserve
