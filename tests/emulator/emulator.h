// emulator.h — runs CUDA kernels on the CPU, so that their index arithmetic, operand layouts and barriers are tested
// without a GPU.
//
// The same .cu is compiled by nvcc for the GPU and by g++ with `-x c++ -include emulator.h` for the tests. Every CUDA
// thread is a fiber; blocks run one after another; a warp collective or a barrier yields until all its threads arrived.
// The order in which fibers run is shuffled from a seed, so a missing barrier shows up as a result that changes with
// the seed. It knows nothing of time, caches or memory ordering: speed and relaxed-memory races still need a GPU.
#pragma once

#include <cuda_bf16.h>  // before the macros below; the __device__ markers are empty for a host compiler
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#undef __shared__
#define __shared__ static  // blocks run one after another, so one copy serves
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#define __CUDA_EMULATED__ 1

namespace emulator {

struct Rendezvous {  // n threads meet; the last one to arrive opens the next round
  int arrived = 0, round = 0;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  int linear;
  bool done = false;
};

struct Warp {
  Rendezvous meet;
  const void* mail[32];  // what each lane brings to a collective
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Rendezvous meet;
  std::vector<char> dynamic_shared;
  ucontext_t scheduler;
  int live = 0;
  long steps = 0;  // progress counter, for the deadlock check
};

inline Block* block;
inline Thread* self;
inline dim3 block_index, block_size, grid_size;
inline unsigned seed = 1;
inline bool drop_barriers =
    false;  // what a kernel without its block barriers would do, for the test of the emulator itself

inline void yield() { swapcontext(&self->context, &block->scheduler); }

inline void arrive_and_wait(Rendezvous& r, int n) {
  const int round = r.round;
  ++block->steps;
  if (++r.arrived == n) {
    r.arrived = 0;
    ++r.round;
  }
  while (r.round == round) yield();
}

inline int lane() { return self->linear % 32; }
inline Warp& warp() { return block->warps[self->linear / 32]; }

// Every lane brings `mine`; `read` sees all 32 mails; nobody leaves before all have read.
template <typename T, typename Read>
auto collective(const T& mine, Read read) {
  Warp& w = warp();
  w.mail[lane()] = &mine;
  arrive_and_wait(w.meet, 32);
  auto result = read([&](int from) -> const T& { return *static_cast<const T*>(w.mail[from]); });
  arrive_and_wait(w.meet, 32);
  return result;
}

inline std::function<void()> body;
inline void trampoline() {
  body();
  self->done = true;
  --block->live;
  ++block->steps;
  Rendezvous& r = block->meet;  // a thread that has left no longer counts at the block's barrier
  if (block->live > 0 && r.arrived == block->live) r = {.arrived = 0, .round = r.round + 1};
  yield();
}

inline void run_block(size_t shared_bytes) {
  Block b;
  block = &b;
  const int n = block_size.x * block_size.y * block_size.z;
  b.threads.resize(n);
  b.warps.resize((n + 31) / 32);
  b.dynamic_shared.assign(shared_bytes + 1024, char(0xCD));  // poisoned: reading what nobody wrote gives garbage
  b.live = n;
  for (int i = 0; i < n; ++i) {
    Thread& t = b.threads[i];
    t.linear = i;
    t.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y));
    constexpr size_t kStack = 256 << 10;
    t.stack.reset(new char[kStack]);
    getcontext(&t.context);
    t.context.uc_stack = {.ss_sp = t.stack.get(), .ss_flags = 0, .ss_size = kStack};
    makecontext(&t.context, trampoline, 0);
  }
  std::mt19937 random(seed);
  std::vector<int> order(n);
  for (int i = 0; i < n; ++i) order[i] = i;
  while (b.live > 0) {
    const long before = b.steps;
    std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (b.threads[i].done) continue;
      self = &b.threads[i];
      swapcontext(&b.scheduler, &self->context);
    }
    if (b.steps == before) {
      char where[64];
      snprintf(where, sizeof where, "(%u, %u, %u)", block_index.x, block_index.y, block_index.z);
      throw std::runtime_error(std::string("emulator: deadlock, no thread can go on in block ") + where);
    }
  }
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t, Args... args) {
  grid_size = grid;
  block_size = threads;
  body = [=] { kernel(args...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        run_block(shared_bytes);
      }
}

}  // namespace emulator

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

inline void __syncthreads() {
  if (!emulator::drop_barriers) emulator::arrive_and_wait(emulator::block->meet, emulator::block->live);
}
inline void __syncwarp(unsigned = ~0u) { emulator::arrive_and_wait(emulator::warp().meet, 32); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::collective(value, [&](auto from) { return from(emulator::lane() ^ mask); });
}

inline float rsqrtf(float value) { return 1.f / sqrtf(value); }
