// parallel.cpp — hands torch's thread pool to the CPU kernels, which know no Torch; and which instruction set they use.
#include "tensors.h"

namespace tinyserve {

namespace cpu {
void run_parallel(int64_t size, int64_t grain, void (*body)(int64_t begin, int64_t end, void* context), void* context) {
  if (size > 0) {
    STD_TORCH_CHECK(torch_parallel_for(0, size, grain, body, context) == AOTI_TORCH_SUCCESS,
                    "torch's thread pool failed");
  }
}
}  // namespace cpu

std::string cpu_isa(const std::string& name) {
  if (!name.empty()) cpu::select_isa(name.c_str());
  return cpu::current_isa();
}

}  // namespace tinyserve
