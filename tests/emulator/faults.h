// faults.h — mistakes that the tests of the emulator ask for while kernels run, to see that each one is noticed.
#pragma once

#include <stdexcept>
#include <string>

namespace emulator {

enum class Fault {
  kNone,
  kBarrier,      // __syncthreads and named barriers do nothing
  kCpAsyncWait,  // cp_async_wait does nothing
  kMbarrierWait,
  kWgmmaWait,
  kSwizzle,   // tensor copies write rows as they are
  kFragment,  // mma takes its second and third fragment of A for each other
  kThreadfence,
  kWeights,  // __ldcg of two floats gives 0 for the first, a maximum: parts of a softmax weigh as if all were equal
};

inline Fault fault = Fault::kNone;

inline void set_fault(const std::string& name) {
  static constexpr struct {
    const char* name;
    Fault fault;
  } kFaults[] = {
      {"", Fault::kNone},
      {"barrier", Fault::kBarrier},
      {"cp_async_wait", Fault::kCpAsyncWait},
      {"mbarrier_wait", Fault::kMbarrierWait},
      {"wgmma_wait", Fault::kWgmmaWait},
      {"swizzle", Fault::kSwizzle},
      {"fragment", Fault::kFragment},
      {"threadfence", Fault::kThreadfence},
      {"weights", Fault::kWeights},
  };
  for (const auto& known : kFaults) {
    if (name == known.name) {
      fault = known.fault;
      return;
    }
  }
  throw std::invalid_argument("emulator: no fault is called " + name);
}

}  // namespace emulator
