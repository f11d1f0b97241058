// limits.h — the GPU that the emulator is: what the tests set, and what a launch must keep to.
#pragma once

#include "grid.h"

#include <stdexcept>

namespace emulator {

// Few multiprocessors, so that small grids already have more than one block each.
constexpr int kMultiprocessors = 4, kComputeCapability = 90;
inline int multiprocessors = kMultiprocessors;
inline int compute_capability = kComputeCapability;

// Bytes of shared memory that a block can have.
inline int shared_limit() {
  switch (compute_capability) {
    case 80:
      return 163 << 10;
    case 90:
      return 227 << 10;
    case 86:
    case 89:
    case 120:
      return 99 << 10;
    default:
      throw std::invalid_argument("emulator: no such GPU, compute capability " + std::to_string(compute_capability));
  }
}

// What cudaLaunchKernelEx would refuse.
inline void check_limits(const Launch& launch) {
  const auto check = [&](bool fits, const char* what, int64_t given) {
    if (!fits)
      throw std::runtime_error(std::string(launch.name) + ": launch with " + what + " of " + std::to_string(given));
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  const int64_t threads = int64_t(block.x) * block.y * block.z;
  check(0 < threads && threads <= 1024 && block.z <= 64, "a block", threads);
  check(0 < grid.x && grid.x <= 0x7fffffff, "a grid.x", grid.x);
  check(0 < grid.y && grid.y <= 65535, "a grid.y", grid.y);
  check(0 < grid.z && grid.z <= 65535, "a grid.z", grid.z);
  check(int64_t(launch.shared_bytes) <= shared_limit(), "bytes of shared memory", launch.shared_bytes);
  check(0 < launch.cluster && launch.cluster <= 8 && grid.x % launch.cluster == 0, "a cluster", launch.cluster);
  check(launch.cluster == 1 || compute_capability >= 90, "a GPU without clusters and a cluster", launch.cluster);
}

}  // namespace emulator
