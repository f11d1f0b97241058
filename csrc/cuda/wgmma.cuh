// wgmma.cuh — matrix products of four warps that run beside them, with one operand in registers. sm_90a alone.
#pragma once

#include "target.cuh"
#include "wgmma_shapes.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace tinyserve::cuda {

// Before the first product, and again whenever registers of its operands have been written since.
__device__ inline void wgmma_fence() {
#ifdef __CUDA_EMULATED__
  emulator::wgmma_fence();
#elif defined(TINYSERVE_SM90A)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// Closes this warp's group of products.
__device__ inline void wgmma_commit() {
#ifdef __CUDA_EMULATED__
  emulator::wgmma_commit();
#elif defined(TINYSERVE_SM90A)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// Waits for all groups but the kPending last ones. The compiler does not know that products write their accumulators
// meanwhile: name those that are read next, and it will not read them too early.
template <int kPending, int... kSizes>
__device__ inline void wgmma_wait(float (&... accumulators)[kSizes]) {
#ifdef __CUDA_EMULATED__
  emulator::wgmma_wait(kPending);
#elif defined(TINYSERVE_SM90A)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  const auto pin = [](auto& values) {
#pragma unroll
    for (float& value : values) asm volatile("" : "+f"(value)::"memory");
  };
  (pin(accumulators), ...);
#else
  __trap();
#endif
}

// How wgmma finds a tile of 16-bit elements in shared memory: rows of 128 bytes, one after the other, swizzled as
// tensor copies write them, from an address on 1024 bytes. The next 16 columns of k are 32 bytes on: descriptor + 2.
__device__ inline uint64_t shared_descriptor(const void* shared) {
#ifdef __CUDA_EMULATED__
  const uint32_t address = emulator::shared_address(shared, 1, 1024, "shared_descriptor");
#else
  const auto address = uint32_t(__cvta_generic_to_shared(shared));
#endif
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62;
  constexpr uint64_t kEightRows = uint64_t(1024 / 16) << 32;  // from 8 rows to the next 8; along k there is no next
  return kSwizzle128 | kEightRows | uint64_t(1) << 16 | (address & 0x3ffff) >> 4;
}

// D[64, N] += A[64, 16] * B[N, 16]^T for four warps, T in, fp32 out: runs until a wait finds it done. Warp w of the
// four has rows 16w..16w + 15, its lanes hold them as for mma_m16n8k16: a[4], and d[4 * j..4 * j + 3] for columns
// 8j..8j + 7. B's rows are N rows of shared memory. Until the wait a must not change and d not be touched.
template <typename T, int N>
__device__ inline void wgmma_m64k16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_descriptor) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  static_assert(N % 8 == 0 && 8 <= N && N <= 256);
#ifdef __CUDA_EMULATED__
  emulator::wgmma<T, N>(d, a, b_descriptor);
#elif defined(TINYSERVE_SM90A)
#define TINYSERVE_WGMMA(n, eighth, inputs, type)                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TINYSERVE_WGMMA_TEXT_##eighth \
               "}, " inputs ", 1, 1, 1, 0;"                                                                       \
               : TINYSERVE_WGMMA_OPERANDS_##eighth                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor))
#define TINYSERVE_WGMMA_CASE(n, eighth, inputs)   \
  if constexpr (N == n) {                         \
    if constexpr (std::is_same_v<T, __half>) {    \
      TINYSERVE_WGMMA(n, eighth, inputs, "f16");  \
    } else {                                      \
      TINYSERVE_WGMMA(n, eighth, inputs, "bf16"); \
    }                                             \
  }
  TINYSERVE_WGMMA_SHAPES(TINYSERVE_WGMMA_CASE)
#undef TINYSERVE_WGMMA_CASE
#undef TINYSERVE_WGMMA
#else
  __trap();
#endif
}

// A warpgroup's registers for each thread from here on: more, taken from what others gave back, or fewer.
template <int kRegisters>
__device__ inline void set_max_registers_up() {
  static_assert(kRegisters % 8 == 0 && 24 <= kRegisters && kRegisters <= 256);
#ifdef __CUDA_EMULATED__
  emulator::set_max_registers();
#elif defined(TINYSERVE_SM90A)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  __trap();
#endif
}
template <int kRegisters>
__device__ inline void set_max_registers_down() {
  static_assert(kRegisters % 8 == 0 && 24 <= kRegisters && kRegisters <= 256);
#ifdef __CUDA_EMULATED__
  emulator::set_max_registers();
#elif defined(TINYSERVE_SM90A)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  __trap();
#endif
}

}  // namespace tinyserve::cuda
