// ptx.cuh — every instruction that has no C++ of its own, once: the instruction for the GPU, its meaning for the
// emulator. Here the loads, the bit operations and what a block is given; the others by noun: mma.cuh, wgmma.cuh,
// async_copy.cuh, barrier.cuh.
#pragma once

#include "async_copy.cuh"
#include "barrier.cuh"
#include "mma.cuh"
#include "target.cuh"
#include "wgmma.cuh"

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

// The same for data that nobody will ask for again: the first to leave the second-level cache too.
__device__ inline uint4 load_evict_first_16(const void* from) {
#ifdef __CUDA_EMULATED__
  return *static_cast<const uint4*>(from);
#else
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from), "l"(evict_first_policy()));
  return value;
#endif
}

// 8 bytes of read-only data, from the first-level cache where they are there; as early as it stands in the program.
__device__ inline uint2 load_read_only_8(const void* from) {
#ifdef __CUDA_EMULATED__
  return *static_cast<const uint2*>(from);
#else
  uint2 value;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
  return value;
#endif
}

// 2^x to about 2 units of the last place; 0 for -infinity.
__device__ inline float exp2_approx(float x) {
#ifdef __CUDA_EMULATED__
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Any function of three words bit by bit; bit 4a + 2b + c of the table is its value: (a & b) | c is 0xea.
template <int kTable>
__device__ inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(0 <= kTable && kTable < 256);
#ifdef __CUDA_EMULATED__
  uint32_t result = 0;
  if constexpr ((kTable & 0x01) != 0) result |= ~a & ~b & ~c;
  if constexpr ((kTable & 0x02) != 0) result |= ~a & ~b & c;
  if constexpr ((kTable & 0x04) != 0) result |= ~a & b & ~c;
  if constexpr ((kTable & 0x08) != 0) result |= ~a & b & c;
  if constexpr ((kTable & 0x10) != 0) result |= a & ~b & ~c;
  if constexpr ((kTable & 0x20) != 0) result |= a & ~b & c;
  if constexpr ((kTable & 0x40) != 0) result |= a & b & ~c;
  if constexpr ((kTable & 0x80) != 0) result |= a & b & c;
  return result;
#else
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return result;
#endif
}

// The block's dynamic shared memory, on 1024 bytes. There is no other: static shared memory does not compile for the
// emulator, whose blocks run at the same time in one address space.
__device__ inline char* shared_memory() {
#ifdef __CUDA_EMULATED__
  return emulator::self->block->shared;
#else
  extern __shared__ __align__(1024) char dynamic_shared_memory[];
  return dynamic_shared_memory;
#endif
}

// What this thread has stored, or has seen stored, is seen by every other one that sees what it stores from now on.
__device__ inline void threadfence() { __threadfence(); }

// A kernel launched as `dependent` runs beside the end of the one before it; from here on that one's stores are there.
// Every block calls it, before it touches anything that an earlier kernel wrote or reads.
__device__ inline void grid_dependency_wait() {
#ifdef __CUDA_EMULATED__
  emulator::grid_dependency_wait();
#elif defined(TINYSERVE_SM90)
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif  // no kernel starts early on older GPUs
}

// The next kernel, if it is dependent, may start once all blocks are here or done.
__device__ inline void grid_dependency_launch() {
#if !defined(__CUDA_EMULATED__) && defined(TINYSERVE_SM90)
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace tinyserve::cuda
