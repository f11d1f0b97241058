// async_copy.cuh — copies from global to shared memory that a thread starts and someone later waits for: cp.async, from
// sm_80 on, by the thread itself; bulk and tensor copies, from sm_90 on, by whoever waits at their mbarrier.
#pragma once

#include "target.cuh"

#include <cuda.h>
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

// The same of 4, both on 4 bytes.
__device__ inline void cp_async_4(void* shared, const void* global, int bytes = 4) {
#ifdef __CUDA_EMULATED__
  emulator::cp_async(shared, global, bytes, 4);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes)
               : "memory");
#endif
}

// 16 bytes of data that nobody will ask for again.
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

// Starts a copy of `bytes`, a multiple of 16, both on 16 bytes, of data that nobody will ask for again. They count at
// the mbarrier, where mbarrier_expect_bytes() announces them.
__device__ inline void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier) {
#ifdef __CUDA_EMULATED__
  emulator::bulk_copy(shared, global, bytes, barrier);
#elif defined(TINYSERVE_SM90)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(uint32_t(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(bytes), "r"(uint32_t(__cvta_generic_to_shared(barrier))), "l"(evict_first_policy())
      : "memory");
#else
  __trap();
#endif
}

// Starts a copy of the map's box at column x of row y (tensor_map.h), to 128 bytes or, to be swizzled as wgmma expects,
// 1024. All bytes of the box count at the mbarrier, also those outside the matrix, which become zero.
__device__ inline void tensor_copy_2d(void* shared, const CUtensorMap* map, int x, int y, uint64_t* barrier) {
#ifdef __CUDA_EMULATED__
  emulator::tensor_copy(shared, *map, x, y, barrier, 1u << emulator::self->block->rank);
#elif defined(TINYSERVE_SM90)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          uint32_t(__cvta_generic_to_shared(shared))),
      "l"(map), "r"(x), "r"(y), "r"(uint32_t(__cvta_generic_to_shared(barrier)))
      : "memory");
#else
  __trap();
#endif
}

// The same into every block of the cluster whose bit is in the mask, at the same place, counted at each one's barrier.
__device__ inline void tensor_copy_2d_multicast(void* shared, const CUtensorMap* map, int x, int y, uint64_t* barrier,
                                                uint16_t mask) {
#ifdef __CUDA_EMULATED__
  emulator::tensor_copy(shared, *map, x, y, barrier, mask);
#elif defined(TINYSERVE_SM90A)  // elsewhere it assembles, with a warning that it is slow
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
      "l"(map), "r"(x), "r"(y), "r"(uint32_t(__cvta_generic_to_shared(barrier))), "h"(mask)
      : "memory");
#else
  __trap();
#endif
}

// What this thread has stored to shared memory is seen by copies and wgmma that start after the next barrier.
__device__ inline void fence_proxy_async() {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_fence_init();  // its only effect here
#elif defined(TINYSERVE_SM90)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

}  // namespace tinyserve::cuda
