// emulator.h — runs CUDA kernels on the CPU, so that their index arithmetic, operand layouts and barriers are tested
// without a GPU.
//
// The same .cu is compiled by nvcc for the GPU and by g++ with `-x c++ -include emulator.h` for the tests. What a
// kernel uses has its meaning here: threads and the order in which they run in grid.h, what they do together in
// collective.h, functions of CUDA C++ in intrinsics.h, and the instructions of csrc/cuda/ptx.cuh in matrix.h, wgmma.h,
// cp_async.h, bulk_copy.h, mbarrier.h and dependency.h. Everything asynchronous happens as late as it may and leaves
// NaN behind until then, so a wait that is missing gives a wrong result; what no GPU defines is an error with a name.
// It knows nothing of time, caches or banks, and of the order in which stores become visible only what weak_stores.h
// says: speed and relaxed-memory races still need a GPU.
#pragma once

#include <cuda_bf16.h>  // before the macros below; the __device__ markers are empty for a host compiler
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "bulk_copy.h"
#include "collective.h"
#include "cp_async.h"
#include "dependency.h"
#include "grid.h"
#include "intrinsics.h"
#include "limits.h"
#include "matrix.h"
#include "mbarrier.h"
#include "wgmma.h"

// One copy would serve all blocks, which run at the same time.
#undef __shared__
#define __shared__ \
  static_assert(false, "shared memory is what shared_memory() of csrc/cuda/ptx.cuh returns, or part of it");
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define __CUDA_EMULATED__ 1

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::self->block->index)
#define blockDim (emulator::grid->launch.block)
#define gridDim (emulator::grid->launch.grid)
