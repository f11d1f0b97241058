// weak_stores.h — stores to memory that the tests name are seen by other blocks only after a __threadfence() in the
// block that made them: the order of a counter and what it counts is then the fence's doing, as on a GPU.
//
// Only for memory that the tests name, since every change of block compares all of it.
#pragma once

#include "grid.h"

namespace emulator {

// Whole words of 4 bytes, for the next launch.
void weaken(void* memory, size_t bytes);
void forget_weak();

class WeakStores {  // of one launch
 public:
  WeakStores();
  ~WeakStores();  // all stores are seen
  WeakStores(const WeakStores&) = delete;
  WeakStores& operator=(const WeakStores&) = delete;
};

void enter_block(const Block& block);  // before one of its threads runs
void publish_stores();                 // those of the running block: __threadfence()
void publish_atomic(const void* at);   // an atomic operation is seen at once

}  // namespace emulator
