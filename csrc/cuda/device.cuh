// device.cuh — what a launcher asks of the GPU it is about to use: the current device, or the one that the emulator is.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace tinyserve::cuda {

struct Device {
  int multiprocessors;
  int compute_capability;  // 90 for 9.0
  int shared_bytes;        // the most that a block can have
};

inline Device current_device() {
#ifdef __CUDA_EMULATED__
  return {emulator::multiprocessors, emulator::compute_capability, emulator::shared_limit()};
#else
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
    return value;
  };
  const Device result = {
      .multiprocessors = get(cudaDevAttrMultiProcessorCount),
      .compute_capability = 10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor),
      .shared_bytes = get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
  };
  if (error != cudaSuccess) throw std::runtime_error(std::string("the GPU's limits: ") + cudaGetErrorString(error));
  return result;
#endif
}

}  // namespace tinyserve::cuda
