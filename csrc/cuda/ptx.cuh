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

// Four of the eight bytes of b:a, byte 0 the lowest of a: digit i of the selector, from the right, names byte i's
// source.
template <int kSelector>
__device__ inline uint32_t permute_bytes(uint32_t a, uint32_t b) {
#ifdef __CUDA_EMULATED__
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> (kSelector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
#else
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "n"(kSelector));
  return result;
#endif
}

}  // namespace tinyserve::cuda
