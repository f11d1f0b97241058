// fiber.h — a call stack that can be left and entered again: what one CUDA thread runs on.
//
// A switch saves the registers that a callee must keep and nothing else; ucontext would make a system call each time.
#pragma once

#include <cstddef>

namespace emulator {

// A stack of its own memory, with an unreadable page below it: too deep a call ends in a crash, not in a neighbour.
class Stack {
 public:
  static constexpr size_t kBytes = 128 << 10;

  Stack();  // from those that earlier fibers left
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // The stack pointer with which switch_fiber() enters `entry`, which must never return.
  void* prepare(void (*entry)()) const;

 private:
  char* memory_;
};

// Leaves the running stack, whose pointer goes to *left, for another one.
extern "C" void emulator_switch_fiber(void** left, void* entered);

}  // namespace emulator
