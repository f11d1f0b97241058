// control.cpp — what the tests set in the emulator, as ops of the emulated library.
#include "dependency.h"
#include "faults.h"
#include "limits.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace {

void set_seed(int64_t seed) { emulator::seed = uint64_t(seed); }
void set_fault(const std::string& name) { emulator::set_fault(name); }
void set_resident_blocks(int64_t blocks) { emulator::resident_blocks = int(blocks); }
void hide_before_wait(const torch::stable::Tensor& tensor) {
  emulator::hide_before_wait(tensor.data_ptr(), tensor.numel() * tensor.element_size());
}
void set_gpu(int64_t multiprocessors, int64_t compute_capability) {
  emulator::multiprocessors = int(multiprocessors);
  emulator::compute_capability = int(compute_capability);
  emulator::shared_limit();  // refuses a GPU that it does not know
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tinyserve_emulated, m) {
  m.def("set_seed(int seed) -> ()");               // the order in which threads and blocks run
  m.def("set_fault(str name) -> ()");              // a mistake to make, of those in faults.h, or none: ""
  m.def("set_resident_blocks(int blocks) -> ()");  // how many run at the same time
  m.def("hide_before_wait(Tensor tensor) -> ()");  // the kernel before the next one writes it
  m.def("set_gpu(int multiprocessors, int compute_capability) -> ()");  // 90 for 9.0
}

STABLE_TORCH_LIBRARY_IMPL(tinyserve_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_seed", TORCH_BOX(&set_seed));
  m.impl("set_fault", TORCH_BOX(&set_fault));
  m.impl("set_resident_blocks", TORCH_BOX(&set_resident_blocks));
  m.impl("hide_before_wait", TORCH_BOX(&hide_before_wait));
  m.impl("set_gpu", TORCH_BOX(&set_gpu));
}
