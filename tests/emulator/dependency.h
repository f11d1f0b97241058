// dependency.h — programmatic dependent launch: what the kernel before this one wrote is not there before somebody has
// waited for it.
#pragma once

#include "grid.h"

namespace emulator {

void grid_dependency_wait();

// These bytes count as written by the kernel before the next launch.
void hide_before_wait(void* memory, size_t bytes);
void forget_hidden();

// Whether these bytes are hidden now: a copy that starts now may read them now.
bool is_hidden(const void* memory);

// While a dependent kernel runs, they hold NaN until its first grid_dependency_wait().
class HiddenTensors {
 public:
  explicit HiddenTensors(const Launch& launch);
  ~HiddenTensors();
  HiddenTensors(const HiddenTensors&) = delete;
  HiddenTensors& operator=(const HiddenTensors&) = delete;
};

// A block of a dependent kernel has waited: else the next kernel could start before the one before this one is done.
void check_waited(const Block& block);

}  // namespace emulator
