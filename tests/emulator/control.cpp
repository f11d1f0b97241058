// control.cpp — what the tests set in the emulator, as ops of the emulated library.
#include "emulator.h"

#include <torch/csrc/stable/library.h>

namespace {

void set_seed(int64_t seed) { emulator::seed = unsigned(seed); }
void drop_barriers(bool drop) { emulator::drop_barriers = drop; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tinyserve_emulated, m) {
  m.def("set_seed(int seed) -> ()");        // the order in which threads run
  m.def("drop_barriers(bool drop) -> ()");  // whether __syncthreads does nothing
}

STABLE_TORCH_LIBRARY_IMPL(tinyserve_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_seed", TORCH_BOX(&set_seed));
  m.impl("drop_barriers", TORCH_BOX(&drop_barriers));
}
