// control.cpp — what the tests set in the emulator, as ops of the emulated library.
#include "dependency.h"
#include "faults.h"
#include "limits.h"
#include "weak_stores.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace {

void set_seed(int64_t seed) { emulator::seed = uint64_t(seed); }
void set_fault(const std::string& name) { emulator::set_fault(name); }
void set_resident_blocks(int64_t blocks) { emulator::resident_blocks = int(blocks); }
void hide_before_wait(const torch::stable::Tensor& tensor) {
  emulator::hide_before_wait(tensor.data_ptr(), tensor.numel() * tensor.element_size());
}
void forget_hidden() { emulator::forget_hidden(); }
void reset() {
  emulator::seed = 1;
  emulator::fault = emulator::Fault::kNone;
  emulator::resident_blocks = emulator::kResidentBlocks;
  emulator::multiprocessors = emulator::kMultiprocessors;
  emulator::compute_capability = emulator::kComputeCapability;
  emulator::forget_hidden();
  emulator::forget_weak();
}
void weaken(const torch::stable::Tensor& tensor) {
  emulator::weaken(tensor.data_ptr(), tensor.numel() * tensor.element_size());
}
void set_gpu(int64_t multiprocessors, int64_t compute_capability) {
  emulator::multiprocessors = int(multiprocessors);
  emulator::compute_capability = int(compute_capability);
  emulator::shared_limit();  // refuses a GPU that it does not know
}

}  // namespace

// set_seed: the order in which threads and blocks run. set_fault: a mistake to make, of those in faults.h, or none: "".
// set_resident_blocks: how many run at the same time. set_gpu: 90 for compute capability 9.0. hide_before_wait: the
// kernel before the next one writes this tensor; forget_hidden takes that back where none was launched. weaken: of the
// next launch, see weak_stores.h. reset: all of it as in the beginning.
STABLE_TORCH_LIBRARY_FRAGMENT(tinyserve_emulated, m) {
  m.def("set_seed(int seed) -> ()");
  m.def("set_fault(str name) -> ()");
  m.def("set_resident_blocks(int blocks) -> ()");
  m.def("set_gpu(int multiprocessors, int compute_capability) -> ()");
  m.def("hide_before_wait(Tensor tensor) -> ()");
  m.def("forget_hidden() -> ()");
  m.def("weaken(Tensor tensor) -> ()");
  m.def("reset() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tinyserve_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_seed", TORCH_BOX(&set_seed));
  m.impl("set_fault", TORCH_BOX(&set_fault));
  m.impl("set_resident_blocks", TORCH_BOX(&set_resident_blocks));
  m.impl("set_gpu", TORCH_BOX(&set_gpu));
  m.impl("hide_before_wait", TORCH_BOX(&hide_before_wait));
  m.impl("forget_hidden", TORCH_BOX(&forget_hidden));
  m.impl("weaken", TORCH_BOX(&weaken));
  m.impl("reset", TORCH_BOX(&reset));
}
