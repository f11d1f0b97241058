// dispatch.cpp — which instruction set's kernels run; their calls are timed and kept where somebody asks. Compiled
// once, for any processor.
#include "../kernels.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tinyserve::cpu {

namespace portable {
extern const Table table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table table;
}
namespace avxvnni {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
namespace avx512bf16 {
extern const Table table;
}
#elif defined(__aarch64__)
namespace dotprod {
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
  static const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif defined(__aarch64__) && defined(__linux__)
  static const bool has_dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__)
  static const bool has_dotprod = true;  // as every Mac with an Arm processor
#endif
  static const Choice all[] = {
#if defined(__x86_64__)
      {&avx512bf16::table, has_avx512 && __builtin_cpu_supports("avx512bf16")},
      {&avx512::table, has_avx512},
      {&avxvnni::table, has_avx2 && __builtin_cpu_supports("avxvnni")},
      {&avx2::table, has_avx2},
#elif defined(__aarch64__)
      {&dotprod::table, has_dotprod},
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

namespace {

// One kernel's calls since start_profile(), from all threads.
struct Spent {
  const char* name;
  std::atomic<int64_t> calls{0}, nanoseconds{0};
};

#define TINYSERVE_SPENT(op, Args) {.name = #op},
Spent spent[] = {TINYSERVE_CPU_KERNELS(TINYSERVE_SPENT)};
enum Index {
#define TINYSERVE_INDEX(op, Args) k_##op,
  TINYSERVE_CPU_KERNELS(TINYSERVE_INDEX)
};
std::atomic<bool> profiling{false};

thread_local Calls* recording = nullptr;

template <typename Args>
void run(Index index, void (*kernel)(const Args&), const Args& args) {
  if (!profiling.load(std::memory_order_relaxed)) return kernel(args);
  const auto start = std::chrono::steady_clock::now();
  kernel(args);
  const auto time = std::chrono::steady_clock::now() - start;
  spent[index].calls.fetch_add(1, std::memory_order_relaxed);
  spent[index].nanoseconds.fetch_add(std::chrono::nanoseconds(time).count(), std::memory_order_relaxed);
}

}  // namespace

void start_profile() {
  for (Spent& one : spent) one.calls = one.nanoseconds = 0;
  profiling = true;
}

std::string end_profile() {
  profiling = false;
  std::string lines;
  for (const Spent& one : spent) {
    if (one.calls > 0) {
      lines += std::string(one.name) + " " + std::to_string(one.calls) + " " + std::to_string(one.nanoseconds) + "\n";
    }
  }
  return lines;
}

void record_to(Calls* calls) { recording = calls; }

void run_recorded(const std::function<void()>& work) {
  work();
  if (recording != nullptr) recording->push_back(work);
}

#define TINYSERVE_DEFINE(op, Args)                                                      \
  void op(const Args& args, void* /*stream*/) {                                         \
    void (*const kernel)(const Args&) = current().load(std::memory_order_relaxed)->op;  \
    run(k_##op, kernel, args);                                                          \
    if (recording != nullptr) recording->push_back([=] { run(k_##op, kernel, args); }); \
  }
TINYSERVE_CPU_KERNELS(TINYSERVE_DEFINE)

}  // namespace tinyserve::cpu
