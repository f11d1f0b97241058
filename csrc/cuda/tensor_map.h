// tensor_map.h — a matrix in global memory as tensor copies see it, made on the host for one launch.
//
// A copy brings a box: 64 columns of 16 bits, 128 bytes, of some rows. In shared memory the box's rows follow each
// other, their 16-byte units exchanged by the row's number modulo 8 (CU_TENSOR_MAP_SWIZZLE_128B), as wgmma reads them;
// what lies outside the matrix is zero.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace tinyserve::cuda {

constexpr int kBoxColumns = 64;

// base on 16 bytes, columns a multiple of 8
inline CUtensorMap tensor_map(const void* base, int64_t rows, int64_t columns, int box_rows) {
#ifdef __CUDA_EMULATED__
  return emulator::tensor_map(base, rows, columns, box_rows, kBoxColumns);
#else
  // Through the runtime: nothing then links against the driver, which a machine that only builds does not have.
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled: it must be of CUDA 12 or newer");

  CUtensorMap map;
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {cuuint64_t(columns) * 2};
  const cuuint32_t box[] = {kBoxColumns, cuuint32_t(box_rows)}, steps[] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(base), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(int(result)) + " for [" +
                             std::to_string(rows) + ", " + std::to_string(columns) + "]");
  return map;
#endif
}

}  // namespace tinyserve::cuda
