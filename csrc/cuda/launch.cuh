// launch.cuh — how every kernel is started: dtype to type, and errors at the launch that made them.
#pragma once

#include "../kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace tinyserve::cuda {

// Calls f with a value of the element type.
template <typename F>
void dispatch(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(float{});
    case Dtype::kHalf:
      return f(__half{});
    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

// Starts a kernel on the GPU or, in the emulated build (tests/emulator), on the CPU; throws where the launch fails.
template <typename... Params, typename... Args>
void launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   void* stream, Args... args) {
#ifdef __CUDA_EMULATED__
  emulator::launch(kernel, grid, block, shared_bytes, static_cast<cudaStream_t>(stream), Params(args)...);
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Params(args)...);
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
#endif
}

}  // namespace tinyserve::cuda
