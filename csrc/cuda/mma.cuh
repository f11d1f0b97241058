// mma.cuh — matrix products of one warp, and how their operands leave shared memory. sm_80 and up.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace tinyserve::cuda {

// D[16, 8] += A[16, 16] * B[16, 8], T in, fp32 out. Lane l holds, with r = l / 4 and c = 2 * (l % 4):
//   a[0..3] = A[r, c..c+1], A[r + 8, c..c+1], A[r, c + 8..c + 9], A[r + 8, c + 8..c + 9]
//   b[0..1] = B[c..c + 1, r], B[c + 8..c + 9, r]        d[0..3] = D[r, c], D[r, c + 1], D[r + 8, c], D[r + 8, c + 1]
template <typename T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#ifdef __CUDA_EMULATED__
  emulator::mma<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// 8x8 matrices of 16-bit elements from shared memory. `row` is this lane's 16 bytes: lanes 8i..8i+7 name the rows of
// the i-th matrix. r[i] is that matrix's [l / 4, 2 * (l % 4)] and the element to its right; transposed, the element [2
// * (l % 4), l / 4] and the one below.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef __CUDA_EMULATED__
  emulator::load_matrices<false>(row, r, 4);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {  // the rows of lanes 0..15
#ifdef __CUDA_EMULATED__
  emulator::load_matrices<false>(row, r, 2);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef __CUDA_EMULATED__
  emulator::load_matrices<true>(row, r, 4);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
#ifdef __CUDA_EMULATED__
  emulator::load_matrices<true>(row, r, 2);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

}  // namespace tinyserve::cuda
