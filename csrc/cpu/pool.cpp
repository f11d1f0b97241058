// pool.cpp — the threads that CPU kernels run on. Compiled once, for any processor.
//
// An OpenMP region, torch's own included, ends when all its threads have come, also those that found nothing left to
// do: beside one other busy process on two cores every region then waits for the scheduler, 8 ms where the work takes
// 0.1. Here the caller takes parts like everyone else and waits only for parts that somebody has begun, so a thread
// that comes late costs nothing, and a process that was forked, and has no such threads, is merely serial.
#include "../kernels.h"

#include <algorithm>
#include <atomic>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyserve::cpu {
namespace {

constexpr int64_t kPartsPerThread = 4;  // so that a thread that comes late or slowly leaves little behind
constexpr int kSpins = 4000;            // about 0.1 ms, more than the gap between two kernels of a model

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Which region runs, how many parts it has and how many were taken, in one word: taking a part is one compare-and-swap
// that fails if the region has ended meanwhile.
struct Progress {
  uint64_t region : 24, parts : 20, taken : 20;
};
constexpr int64_t kMaxParts = (1 << 20) - 1;
static_assert(sizeof(Progress) == 8 && std::atomic<Progress>::is_always_lock_free);

class Pool {
 public:
  void run(int threads, int64_t size, int64_t grain, ParallelBody* body, void* context) {
    const int64_t parts = std::min({(size + grain - 1) / grain, threads * kPartsPerThread, kMaxParts});
    if (threads == 1 || parts <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
      return body(0, size, context);  // busy: called from a part, or by a second caller
    }
    for (; num_threads_ + 1 < threads; ++num_threads_) std::thread([this] { work(); }).detach();
    body_ = body;
    context_ = context;
    size_ = size;
    done_.store(0, std::memory_order_relaxed);
    const Progress last = progress_.load(std::memory_order_relaxed);
    progress_.store({.region = last.region + 1u, .parts = uint64_t(parts), .taken = 0}, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) progress_.notify_all();

    take_parts();
    for (int spins = 0; done_.load(std::memory_order_acquire) < parts; ++spins) {
      spins < kSpins ? pause() : std::this_thread::yield();
    }
    busy_.store(false, std::memory_order_release);
  }

 private:
  void take_parts() {
    Progress now = progress_.load(std::memory_order_acquire);
    while (now.taken < now.parts) {
      const Progress next = {.region = now.region, .parts = now.parts, .taken = now.taken + 1u};
      if (!progress_.compare_exchange_weak(now, next, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      // The region cannot end before this part is done, so what run() wrote about it holds.
      const int64_t begin = size_ * int64_t(now.taken) / int64_t(now.parts);
      const int64_t end = size_ * int64_t(now.taken + 1) / int64_t(now.parts);
      body_(begin, end, context_);
      done_.fetch_add(1, std::memory_order_release);
      now = progress_.load(std::memory_order_acquire);
    }
  }

  void work() {
    for (;;) {
      const Progress seen = progress_.load(std::memory_order_acquire);
      if (seen.taken < seen.parts) {
        take_parts();
        continue;
      }
      int spins = 0;
      while (spins < kSpins && !has_changed(seen)) {
        pause();
        ++spins;
      }
      if (spins < kSpins) continue;
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      progress_.wait(seen, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  bool has_changed(const Progress& seen) const {
    return progress_.load(std::memory_order_relaxed).region != seen.region;
  }

  std::atomic<Progress> progress_{Progress{}};
  std::atomic<int64_t> done_{0};  // parts of the present region
  std::atomic<int> sleepers_{0};
  std::atomic<bool> busy_{false};
  int num_threads_ = 0;  // beside the caller; changed by whoever holds busy_
  ParallelBody* body_ = nullptr;
  void* context_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

void run_on_pool(int threads, int64_t size, int64_t grain, ParallelBody* body, void* context) {
  static Pool& pool = *new Pool;  // never destroyed: its threads outlive everything
  pool.run(threads, size, grain, body, context);
}

}  // namespace tinyserve::cpu
