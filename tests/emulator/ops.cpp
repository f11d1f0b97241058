// ops.cpp — the emulator's own kernels as ops: tinyserve_emulated.test_* on the CPU, tinyserve_instructions.test_* on a
// GPU. Sizes are the tests' business.
#include "kernels.h"

#include "../../csrc/ops/tensors.h"

#include <torch/csrc/stable/library.h>

namespace {

using namespace tinyserve;

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

void gemm(const Tensor& a, const Tensor& b, const Tensor& out, bool transposed) {
  const instructions::GemmArgs args{
      .a = a.data_ptr(),
      .b = b.data_ptr(),
      .out = data<float>(out),
      .m = int(out.size(0)),
      .n = int(out.size(1)),
      .k = int(a.size(transposed ? 0 : 1)),
      .bf16 = a.scalar_type() == ScalarType::BFloat16,
      .transposed = transposed,
  };
  const DeviceGuard guard(out.get_device());
  instructions::gemm(args, current_stream(out));
}

void split_sum(const Tensor& x, const Tensor& workspace, const Tensor& counters, const Tensor& out) {
  const instructions::SplitSumArgs args{
      .x = data<float>(x),
      .workspace = data<float>(workspace),
      .counters = data<unsigned>(counters),
      .out = data<float>(out),
      .tiles = int(x.size(0)),
      .parts = int(x.size(1)),
  };
  const DeviceGuard guard(out.get_device());
  instructions::split_sum(args, current_stream(out));
}

void warp_functions(const Tensor& x, const Tensor& out) {
  const DeviceGuard guard(out.get_device());
  instructions::warp_functions(data<int>(x), data<int>(out), current_stream(out));
}

void ring_sum(const Tensor& x, const Tensor& out) {
  const DeviceGuard guard(out.get_device());
  instructions::ring_sum(data<float>(x), data<float>(out), int(x.size(0)), current_stream(out));
}

void cluster_gemm(const Tensor& w, const Tensor& x, const Tensor& out, int64_t tile_m, int64_t mistake) {
  const instructions::ClusterGemmArgs args{
      .w = w.data_ptr(),
      .x = x.data_ptr(),
      .out = data<float>(out),
      .m = int(x.size(0)),
      .n = int(w.size(0)),
      .k = int(x.size(1)),
      .tile_m = int(tile_m),
      .bf16 = x.scalar_type() == ScalarType::BFloat16,
      .mistake = instructions::Mistake(mistake),
  };
  const DeviceGuard guard(out.get_device());
  instructions::cluster_gemm(args, current_stream(out));
}

void copy(const Tensor& from, const Tensor& to, int64_t count) {
  const DeviceGuard guard(to.get_device());
  instructions::copy(data<float>(from), data<float>(to), int(count), current_stream(to));
}

}  // namespace

#define TINYSERVE_TEST_SCHEMAS(m)                                                                     \
  m.def("test_gemm(Tensor a, Tensor b, Tensor(a!) out, bool transposed) -> ()");                      \
  m.def("test_split_sum(Tensor x, Tensor(a!) workspace, Tensor(b!) counters, Tensor(c!) out) -> ()"); \
  m.def("test_warp_functions(Tensor x, Tensor(a!) out) -> ()");                                       \
  m.def("test_ring_sum(Tensor x, Tensor(a!) out) -> ()");                                             \
  m.def("test_cluster_gemm(Tensor w, Tensor x, Tensor(a!) out, int tile_m, int mistake) -> ()");      \
  m.def("test_copy(Tensor source, Tensor(a!) to, int count) -> ()")
#define TINYSERVE_TEST_KERNELS(m)                            \
  m.impl("test_gemm", TORCH_BOX(&gemm));                     \
  m.impl("test_split_sum", TORCH_BOX(&split_sum));           \
  m.impl("test_warp_functions", TORCH_BOX(&warp_functions)); \
  m.impl("test_ring_sum", TORCH_BOX(&ring_sum));             \
  m.impl("test_cluster_gemm", TORCH_BOX(&cluster_gemm));     \
  m.impl("test_copy", TORCH_BOX(&copy))

#if defined(TINYSERVE_CUDA)
STABLE_TORCH_LIBRARY(tinyserve_instructions, m) { TINYSERVE_TEST_SCHEMAS(m); }
STABLE_TORCH_LIBRARY_IMPL(tinyserve_instructions, CUDA, m) { TINYSERVE_TEST_KERNELS(m); }
#else
STABLE_TORCH_LIBRARY_FRAGMENT(tinyserve_emulated, m) { TINYSERVE_TEST_SCHEMAS(m); }
STABLE_TORCH_LIBRARY_IMPL(tinyserve_emulated, CPU, m) { TINYSERVE_TEST_KERNELS(m); }
#endif
