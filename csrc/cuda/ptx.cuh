// ptx.cuh — every instruction that has no C++ of its own, once: the instruction for the GPU, its meaning for the
// emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tinyserve::cuda {

// 16 bytes of read-only data that no other block will ask for: past the first-level cache.
__device__ inline uint4 load_streaming_16(const void* from) {
#ifdef __CUDA_EMULATED__
  return *static_cast<const uint4*>(from);
#else
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
#endif
}

}  // namespace tinyserve::cuda
