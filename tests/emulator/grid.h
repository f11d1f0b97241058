// grid.h — the threads, warps and blocks of one launch, and the order in which they run.
//
// Every thread is a fiber. It runs until it waits (at a barrier, for the other lanes of a warp instruction, ...) or
// yields; then any warp with a thread that can go on is next, chosen at random from a seed, and runs on for a random
// while. So warps and blocks get far ahead of each other, and a barrier that is missing shows as a result that changes
// with the seed. Blocks start in a random order; a bounded number of them is resident. It knows nothing of time, caches
// or the order in which stores become visible.
#pragma once

#include "fiber.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulator {

// A small fast generator, good enough to shuffle with.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) {}
  uint32_t below(uint32_t end) {
    state_ = state_ * 6364136223846793005 + 1442695040888963407;
    return uint32_t(((state_ >> 32) * end) >> 32);
  }

 private:
  uint64_t state_;
};

struct Thread;
struct Block;
struct Cluster;

using Waiters = std::vector<Thread*>;

// Threads meet; the last one to arrive lets the others go.
struct Barrier {
  int arrived = 0;
  int expected = 0;           // of a named barrier
  int votes = 0, result = 0;  // of those who arrived with a yes; of the last round
  Waiters waiting;
};

// Lanes of a warp meet in one instruction; the last one to arrive does it for all.
struct Meeting {
  const char* instruction;
  unsigned mask, arrived = 0;
  void* operands[32];
};

struct Warp {
  Block* block = nullptr;
  unsigned ready = 0;                      // lanes that can go on
  int place = -1;                          // in the grid's list of warps with such lanes
  int products = 0, register_changes = 0;  // wgmma, setmaxnreg
  std::vector<Meeting> meetings;
};

struct Copy {  // of cp.async, that has not arrived
  void* to;
  const void* from;
  int bytes, size;
};

struct Wgmma {  // a lane's part of its warpgroup's products
  struct Issued {
    float* d;
    int n;
    const uint32_t* a;
    uint32_t a_then[4];
    uint64_t b_descriptor;
    int element;
  };
  struct Accumulators {  // in use: what they hold is not in their registers
    float* d;
    std::vector<float> values;
    int products;  // under way
  };
  bool fenced = false;
  std::vector<std::vector<Issued>> groups{1};  // the last one is still open
  std::vector<Accumulators> accumulators;
  std::unordered_map<const void*, std::vector<uint32_t>> at_fence;  // registers of operands, and what they held there
};

struct BulkCopy {  // or tensor copy, that has not arrived
  Block* block;    // where it goes
  void* barrier;   // where it counts
  uint32_t to;     // in shared memory
  int bytes;
  const char* from;
  int64_t rows, columns;  // of a tensor, 16-bit elements
  int x, y, box_rows;     // none for a bulk copy
};

struct Thread {
  Block* block;
  dim3 index;
  int linear;
  bool done = false;
  const char* waits_for = nullptr;
  std::vector<std::vector<Copy>> copies{1};  // of each group; the last one is still open
  Wgmma wgmma;
  void* stack_pointer = nullptr;
  std::optional<Stack> stack;
};

struct Block {
  static constexpr int kBarriers = 16;

  Cluster* cluster;
  dim3 index;
  int rank;  // in its cluster
  int live;  // threads that have not left
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];  // 0 is that of __syncthreads
  std::vector<char> memory;
  char* shared;                                 // dynamic shared memory, on 1024 bytes
  std::unordered_map<void*, Thread*> unfenced;  // mbarriers whose initialisation this thread has not fenced
  bool waited = false;                          // for the kernel before this one
};

struct Cluster {  // blocks that are resident together; of one block where nobody asked for more
  int live;       // threads
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

struct Launch {
  const char* name;
  dim3 grid, block;
  size_t shared_bytes;
  int cluster;  // blocks along x
  bool dependent;
};

class Grid {
 public:
  Grid(const Launch& launch, std::function<void()> body);
  void run();

  const Launch launch;
  Random random;
  std::unordered_map<void*, Waiters> at_mbarrier;
  std::vector<BulkCopy> in_flight;
  std::optional<BulkCopy> arriving;  // chosen, with the thread that brings it
  Thread* bringer = nullptr;

  // For the running thread: stops until wake(), or only lets others go first.
  void wait(const char* what);
  void yield();
  void wake(Waiters& waiters);
  void wake(Thread& thread);

  // Gives up the running thread, which has touched memory that is not its own; from a signal's handler.
  void abandon(std::string error);

 private:
  static void thread_main();
  void start_cluster(unsigned first);
  void run_warp(Warp& warp);
  void leave(Thread& thread);
  void end(Cluster& cluster);
  std::string deadlock() const;

  std::function<void()> body_;
  std::vector<std::unique_ptr<Cluster>> resident_;
  std::vector<Warp*> ready_;
  void* scheduler_ = nullptr;  // its stack pointer while a thread runs
  std::string error_;
};

inline Grid* grid = nullptr;
inline Thread* self = nullptr;  // the running thread

// What the tests set.
inline uint64_t seed = 1;
constexpr int kResidentBlocks = 4;
inline int resident_blocks = kResidentBlocks;

inline int lane() { return self->linear % 32; }
inline Warp& warp() { return self->block->warps[self->linear / 32]; }

// Ends the launch with an error: a kernel did what no GPU would allow or define.
[[noreturn]] void fail(const std::string& what);
std::string where(const Thread& thread);

// Lets a barrier go once all have arrived.
void open_if_complete(Barrier& barrier, int expected);
int arrive_and_wait(Barrier& barrier, int expected, const char* what, bool vote = false);  // how many voted yes

void run(const Launch& launch, std::function<void()> body);

template <typename Kernel, typename... Args>
void launch(Kernel kernel, const Launch& config, Args... args) {
  run(config, [=] { kernel(args...); });
}

}  // namespace emulator
