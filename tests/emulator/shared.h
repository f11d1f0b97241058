// shared.h — addresses in the running block's shared memory.
#pragma once

#include "grid.h"

#include <cstring>

namespace emulator {

// Where `to` is in shared memory, counted from its begin as the hardware does; all `bytes` must lie there.
inline uint32_t shared_address(const void* to, int64_t bytes, int alignment, const char* instruction) {
  const int64_t at = static_cast<const char*>(to) - self->block->shared;
  if (at < 0 || at + bytes > int64_t(grid->launch.shared_bytes))
    fail(std::string(instruction) + ": " + std::to_string(bytes) + " bytes at " + std::to_string(at) + " of " +
         std::to_string(grid->launch.shared_bytes) + " of shared memory");
  if (at % alignment != 0)
    fail(std::string(instruction) + ": address " + std::to_string(at) + " is not on " + std::to_string(alignment) +
         " bytes");
  return uint32_t(at);
}

inline void check_aligned(const void* address, int alignment, const char* instruction) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0)
    fail(std::string(instruction) + ": a global address is not on " + std::to_string(alignment) + " bytes");
}

// Bytes that are about to be overwritten read as NaN until they are.
inline void poison(void* to, int64_t bytes) { std::memset(to, 0xFF, bytes); }

}  // namespace emulator
