// fiber.cpp — the switch in each processor's own words, and the stock of stacks.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__x86_64__)
asm(R"(
  .text
  .globl emulator_switch_fiber
  .hidden emulator_switch_fiber
  .type emulator_switch_fiber, @function
emulator_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch_fiber, .-emulator_switch_fiber
)");
constexpr size_t kSavedWords = 6;     // below the address that `ret` goes to
constexpr size_t kEntryWord = 6;      // where that address is, counted from the stack pointer
constexpr size_t kReservedWords = 2;  // of which the address is the first: the stack is then as after a call
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl emulator_switch_fiber
  .hidden emulator_switch_fiber
  .type emulator_switch_fiber, %function
emulator_switch_fiber:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulator_switch_fiber, .-emulator_switch_fiber
)");
constexpr size_t kSavedWords = 20;
constexpr size_t kEntryWord = 11;  // x30
constexpr size_t kReservedWords = 0;
#else
#error "the emulator knows how to switch fibers on x86-64 and aarch64 only"
#endif

namespace emulator {
namespace {

constexpr size_t kGuard = 64 << 10;  // a page, on any machine

std::vector<char*>& stock() {
  static std::vector<char*> stacks;
  return stacks;
}

}  // namespace

Stack::Stack() {
  if (!stock().empty()) {
    memory_ = stock().back();  // the last one used is the warmest
    stock().pop_back();
    return;
  }
  void* memory = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory) + kGuard;
}

Stack::~Stack() { stock().push_back(memory_); }

void* Stack::prepare(void (*entry)()) const {
  auto** top = reinterpret_cast<void**>(memory_ + kBytes) - kReservedWords - kSavedWords;
  for (size_t i = 0; i < kSavedWords + kReservedWords; ++i) top[i] = nullptr;
  top[kEntryWord] = reinterpret_cast<void*>(entry);
  return top;
}

}  // namespace emulator
