// parallel.cpp — what the CPU kernels, which know no Torch, take from it: the number of threads; and the choice of
// instruction set and the profile as ops.
#include "tensors.h"

namespace tinyserve {

namespace cpu {
void run_parallel(int64_t size, int64_t grain, ParallelBody* body, void* context) {
  if (size > 0) run_on_pool(int(torch::stable::get_num_threads()), size, grain, body, context);
}
}  // namespace cpu

std::string cpu_isa(const std::string& name) {
  if (!name.empty()) cpu::select_isa(name.c_str());
  return cpu::current_isa();
}

std::string cpu_profile(bool start) {
  const std::string lines = cpu::end_profile();
  if (start) cpu::start_profile();
  return lines;
}

}  // namespace tinyserve
