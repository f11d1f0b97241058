// barrier.cuh — how threads of a block, blocks of a cluster and asynchronous copies meet. Named barriers everywhere,
// the others from sm_90 on.
#pragma once

#include "target.cuh"

#include <cuda_runtime.h>

#include <cstdint>

namespace tinyserve::cuda {

// A barrier of `threads` threads of the block, whole warps; ids 1..15 are free, 0 is that of __syncthreads.
__device__ inline void named_barrier_sync(int id, int threads) {
#ifdef __CUDA_EMULATED__
  emulator::named_barrier(id, threads, true);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
__device__ inline void named_barrier_arrive(int id, int threads) {  // without waiting for the others
#ifdef __CUDA_EMULATED__
  emulator::named_barrier(id, threads, false);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// A block's number in its cluster; 0 without one.
__device__ inline int cluster_rank() {
#ifdef __CUDA_EMULATED__
  return emulator::self->block->rank;
#elif defined(TINYSERVE_SM90)
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
#else
  return 0;
#endif
}

// An mbarrier is 8 bytes of shared memory. A phase ends when `count` arrivals and all bytes that were announced are
// there; the next one begins at once. Phases count from 0, a wait names its phase modulo 2.
__device__ inline void mbarrier_init(uint64_t* barrier, int count) {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_init(barrier, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(uint32_t(__cvta_generic_to_shared(barrier))), "r"(count)
               : "memory");
#endif
}

// After this thread's mbarrier_init() and before the barrier after which others use them, copies included.
__device__ inline void mbarrier_fence_init() {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_fence_init();
#elif defined(TINYSERVE_SM90)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_arrive(barrier, cluster_rank(), 0);
#elif defined(TINYSERVE_SM90)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(uint32_t(__cvta_generic_to_shared(barrier)))
               : "memory");
#else
  __trap();
#endif
}

// At the barrier that has this one's place in the block of that rank in the cluster.
__device__ inline void mbarrier_arrive_remote(uint64_t* barrier, int rank) {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_arrive(barrier, rank, 0);
#elif defined(TINYSERVE_SM90)
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(uint32_t(__cvta_generic_to_shared(barrier))), "r"(rank));
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
#else
  __trap();
#endif
}

// Announces bytes that copies will bring in this phase, and arrives.
__device__ inline void mbarrier_expect_bytes(uint64_t* barrier, int bytes) {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_arrive(barrier, cluster_rank(), bytes);
#elif defined(TINYSERVE_SM90)
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(uint32_t(__cvta_generic_to_shared(barrier))),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}

// Until the phase of this parity is over. A new barrier is in phase 0: a wait for parity 1 returns at once.
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
#ifdef __CUDA_EMULATED__
  emulator::mbarrier_wait(barrier, parity);
#elif defined(TINYSERVE_SM90)
  uint32_t over;
  do {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}\n"
        : "=r"(over)
        : "r"(uint32_t(__cvta_generic_to_shared(barrier))), "r"(parity)
        : "memory");
  } while (over == 0);
#else
  __trap();
#endif
}

// All threads of all blocks of the cluster meet.
__device__ inline void cluster_sync() {
#ifdef __CUDA_EMULATED__
  emulator::cluster_sync();
#elif defined(TINYSERVE_SM90)
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

}  // namespace tinyserve::cuda
