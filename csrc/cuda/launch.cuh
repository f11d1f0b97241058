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

// The same for kernels of 16 bits; the op has refused the others.
template <typename F>
void dispatch_half(Dtype dtype, const F& f) {
  if (dtype == Dtype::kHalf) return f(__half{});
  if (dtype == Dtype::kBFloat16) return f(__nv_bfloat16{});
  throw std::invalid_argument("a kernel of 16 bits was given float32");
}

struct LaunchOptions {
  int cluster = 1;         // blocks, along x, that share their shared memory; sm_90 and up
  bool dependent = false;  // may start before the kernel before it in the stream is done: see grid_dependency_wait()
};

// Starts a kernel on the GPU or, in the emulated build (tests/emulator), on the CPU; throws where the launch fails.
template <typename... Params, typename... Args>
void launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   void* stream, LaunchOptions options, Args... args) {
#ifdef __CUDA_EMULATED__
  (void)stream;
  const emulator::Launch launch{name, grid, block, shared_bytes, options.cluster, options.dependent};
  emulator::launch(kernel, launch, Params(args)...);
#else
  constexpr size_t kUnasked = 48 << 10;  // dynamic shared memory that a kernel has without asking
  const auto check = [&](cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
  };
  if (shared_bytes > kUnasked)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  if (options.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(options.cluster), 1, 1};
  }
  cudaFuncAttributes compiled = {};
  if (options.dependent) check(cudaFuncGetAttributes(&compiled, kernel));
  // Older code waits for nothing, on whatever GPU it runs: it starts when the kernel before it is done.
  if (compiled.ptxVersion >= 90) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...));
#endif
}
template <typename... Params, typename... Args>
void launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   void* stream, Args... args) {
  launch_kernel(name, kernel, grid, block, shared_bytes, stream, LaunchOptions{}, args...);
}

}  // namespace tinyserve::cuda
