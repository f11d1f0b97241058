// memory_fault.cpp — see memory_fault.h
#include "memory_fault.h"

#include "grid.h"

#include <csignal>
#include <cstdio>

namespace emulator {
namespace {

constexpr size_t kStack = 64 << 10;

// Leaves for the scheduler, never to return: the thread's stack is given up as it is. Signals stay as they were, since
// the handler does not block its own.
void handle(int signal, siginfo_t* info, void*) {
  if (self == nullptr) {  // no kernel's doing
    std::signal(signal, SIG_DFL);
    return;
  }
  char text[128];
  std::snprintf(text, sizeof text, ": access to memory at %p, which is not there, in ", info->si_addr);
  grid->abandon(std::string(grid->launch.name) + text + where(*self));
}

}  // namespace

MemoryFaults::MemoryFaults() : stack_(new char[kStack]) {
  const stack_t stack = {.ss_sp = stack_.get(), .ss_flags = 0, .ss_size = kStack};
  sigaltstack(&stack, &stack_before_);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &segv_before_);
  sigaction(SIGBUS, &action, &bus_before_);
}

MemoryFaults::~MemoryFaults() {
  sigaction(SIGSEGV, &segv_before_, nullptr);
  sigaction(SIGBUS, &bus_before_, nullptr);
  sigaltstack(&stack_before_, nullptr);
}

}  // namespace emulator
