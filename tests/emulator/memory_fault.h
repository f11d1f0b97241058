// memory_fault.h — a thread that touches memory which is not there ends the launch with an error, not the process.
#pragma once

#include <signal.h>

#include <memory>

namespace emulator {

// While it lives, invalid accesses of emulated threads are errors of their kernel.
class MemoryFaults {
 public:
  MemoryFaults();
  ~MemoryFaults();
  MemoryFaults(const MemoryFaults&) = delete;
  MemoryFaults& operator=(const MemoryFaults&) = delete;

 private:
  std::unique_ptr<char[]> stack_;  // the handler's own: the thread's may be what ran out
  stack_t stack_before_;
  struct sigaction segv_before_, bus_before_;
};

}  // namespace emulator
