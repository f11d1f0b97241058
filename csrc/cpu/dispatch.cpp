// dispatch.cpp — which instruction set's kernels run. Compiled once, for any processor.
#include "../kernels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace tinyserve::cpu {

namespace portable {
extern const Table table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
namespace avx512bf16 {
extern const Table table;
}
#endif

namespace {

struct Choice {
  const Table* table;
  bool supported;  // by this machine
};

// Best first. The features are those that setup.py lets the compiler use.
const Choice* choices(int& count) {
#if defined(__x86_64__)
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                                 __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
#endif
  static const Choice all[] = {
#if defined(__x86_64__)
      {&avx512bf16::table, has_avx512 && __builtin_cpu_supports("avx512bf16")},
      {&avx512::table, has_avx512},
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
      {&portable::table, true},
  };
  count = sizeof all / sizeof all[0];
  return all;
}

const Table* find(const char* name) {
  int count = 0;
  const Choice* all = choices(count);
  std::string usable;
  for (int i = 0; i < count; ++i) {
    if (!all[i].supported) continue;
    if (name == nullptr || strcmp(all[i].table->isa, name) == 0) return all[i].table;
    usable += std::string(usable.empty() ? "" : ", ") + all[i].table->isa;
  }
  throw std::invalid_argument("TINYSERVE_CPU_ISA must be one of " + usable + " on this machine, got " + name);
}

std::atomic<const Table*>& current() {
  static std::atomic<const Table*> table = [] {
    const char* name = getenv("TINYSERVE_CPU_ISA");
    return find(name != nullptr && *name != 0 ? name : nullptr);
  }();
  return table;
}

}  // namespace

const char* current_isa() { return current().load()->isa; }
void select_isa(const char* name) { current() = find(name); }

#define TINYSERVE_DEFINE(op, Args) \
  void op(const Args& args, void* /*stream*/) { current().load(std::memory_order_relaxed)->op(args); }
TINYSERVE_CPU_KERNELS(TINYSERVE_DEFINE)

}  // namespace tinyserve::cpu
