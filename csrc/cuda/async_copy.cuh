// async_copy.cuh — copies from global to shared memory that a thread starts and later waits for. sm_80 and up.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tinyserve::cuda {

#ifndef __CUDA_EMULATED__
// What marks lines of the second-level cache as the first to leave.
__device__ inline uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#endif

// Starts a copy of the first `bytes` of 16; the rest become zero. With 0 bytes nothing is read. Both on 16 bytes.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes = 16) {
#ifdef __CUDA_EMULATED__
  emulator::cp_async(shared, global, bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes)
               : "memory");
#endif
}

// The same for data that nobody will ask for again.
__device__ inline void cp_async_16_streaming(void* shared, const void* global, int bytes = 16) {
#ifdef __CUDA_EMULATED__
  emulator::cp_async(shared, global, bytes);
#else
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "l"(evict_first_policy())
               : "memory");
#endif
}

// Closes this thread's group of copies; a group may be empty.
__device__ inline void cp_async_commit() {
#ifdef __CUDA_EMULATED__
  emulator::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of this thread's groups but the kPending last ones. Other threads see the data after a barrier.
template <int kPending>
__device__ inline void cp_async_wait() {
#ifdef __CUDA_EMULATED__
  emulator::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace tinyserve::cuda
