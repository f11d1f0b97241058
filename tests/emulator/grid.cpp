// grid.cpp — see grid.h
#include "grid.h"

#include "bulk_copy.h"
#include "dependency.h"
#include "limits.h"
#include "memory_fault.h"
#include "weak_stores.h"
#include "wgmma.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

namespace emulator {
namespace {

constexpr char kPoison = char(0xFF);  // NaN in every floating-point type: reading what nobody wrote shows
constexpr size_t kRedZone = 1024;     // bytes after a block's shared memory

std::string text(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

}  // namespace

std::string where(const Thread& thread) {
  return "thread " + text(thread.index) + " of block " + text(thread.block->index);
}

void fail(const std::string& what) {
  throw std::runtime_error(std::string(grid->launch.name) + ": " + what + ", in " + where(*self));
}

Grid::Grid(const Launch& launch, std::function<void()> body) : launch(launch), random(seed), body_(std::move(body)) {}

void Grid::thread_main() {
  // The grid and the thread by now, not by later: a fiber that was left is entered as another's.
  Thread& thread = *self;
  try {
    grid->body_();
    grid->leave(thread);
  } catch (const std::exception& error) {
    grid->error_ = error.what();
  }
  thread.done = true;
  emulator_switch_fiber(&thread.stack_pointer, grid->scheduler_);
}

void Grid::leave(Thread& thread) {
  Block& block = *thread.block;
  thread.done = true;
  --block.live;
  --block.cluster->live;
  if (block.live > 0) open_if_complete(block.barriers[0], block.live);  // who has left is not waited for
  if (block.cluster->live > 0) open_if_complete(block.cluster->barrier, block.cluster->live);
}

void Grid::wait(const char* what) {
  Thread& thread = *self;
  Warp& its = warp();
  thread.waits_for = what;
  its.ready &= ~(1u << thread.linear % 32);
  yield();
}

void Grid::abandon(std::string error) {
  error_ = std::move(error);
  yield();
}

void Grid::yield() { emulator_switch_fiber(&self->stack_pointer, scheduler_); }

void Grid::wake(Thread& thread) {
  Warp& its = thread.block->warps[thread.linear / 32];
  thread.waits_for = nullptr;
  its.ready |= 1u << thread.linear % 32;
  if (its.place < 0) {
    its.place = int(ready_.size());
    ready_.push_back(&its);
  }
}

void Grid::wake(Waiters& waiters) {
  for (Thread* thread : waiters) wake(*thread);
  waiters.clear();
}

void Grid::start_cluster(unsigned first) {
  auto& cluster = *resident_.emplace_back(std::make_unique<Cluster>());
  const int threads = launch.block.x * launch.block.y * launch.block.z;
  cluster.live = threads * launch.cluster;
  for (int rank = 0; rank < launch.cluster; ++rank) {
    Block& block = *cluster.blocks.emplace_back(std::make_unique<Block>());
    const unsigned linear = first * launch.cluster + rank;
    block.cluster = &cluster;
    block.index =
        dim3(linear % launch.grid.x, linear / launch.grid.x % launch.grid.y, linear / launch.grid.x / launch.grid.y);
    block.rank = rank;
    block.live = threads;
    block.memory.assign(launch.shared_bytes + kRedZone + 1024, kPoison);
    block.shared = block.memory.data() + (1024 - reinterpret_cast<uintptr_t>(block.memory.data()) % 1024);
    block.threads = std::vector<Thread>(threads);
    block.warps = std::vector<Warp>((threads + 31) / 32);
    for (Warp& warp : block.warps) warp.block = &block;
    for (int i = 0; i < threads; ++i) {
      Thread& thread = block.threads[i];
      thread.block = &block;
      thread.linear = i;
      thread.index = dim3(i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y);
      thread.stack_pointer = thread.stack.emplace().prepare(thread_main);
      wake(thread);
    }
  }
}

// Lets the lanes that can go on do so, in a random order, for a random number of rounds.
void Grid::run_warp(Warp& warp) {
  static constexpr int kRounds[] = {1, 1, 4, 32};
  const int first = &warp - warp.block->warps.data();
  enter_block(*warp.block);
  for (int round = kRounds[random.below(4)]; round > 0 && warp.ready != 0; --round) {
    const unsigned start = random.below(32), stride = 2 * random.below(16) + 1;
    for (unsigned i = 0; i < 32; ++i) {
      const unsigned lane = (start + i * stride) % 32;
      if ((warp.ready >> lane & 1) == 0) continue;
      Thread& thread = warp.block->threads[first * 32 + lane];
      self = &thread;
      emulator_switch_fiber(&scheduler_, thread.stack_pointer);
      self = nullptr;
      if (!error_.empty()) throw std::runtime_error(error_);
      if (thread.done) warp.ready &= ~(1u << lane);
    }
  }
  if (warp.ready == 0) {
    ready_.back()->place = warp.place;
    ready_[warp.place] = ready_.back();
    ready_.pop_back();
    warp.place = -1;
  }
}

void Grid::end(Cluster& cluster) {
  check_copies_arrived(cluster);
  for (const auto& block : cluster.blocks) {
    check_warpgroups(*block);
    check_waited(*block);
    const std::vector<char>& memory = block->memory;
    const auto zone = memory.begin() + (block->shared - memory.data()) + launch.shared_bytes;
    if (std::any_of(zone, memory.end(), [](char byte) { return byte != kPoison; }))
      throw std::runtime_error(std::string(launch.name) + ": block " + text(block->index) + " wrote past its " +
                               std::to_string(launch.shared_bytes) + " bytes of shared memory");
  }
}

std::string Grid::deadlock() const {
  std::map<std::string, std::pair<int, const Thread*>> waiting;
  for (const auto& cluster : resident_)
    for (const auto& block : cluster->blocks)
      for (const Thread& thread : block->threads)
        if (!thread.done) {
          auto& [count, example] = waiting[thread.waits_for];
          if (count++ == 0) example = &thread;
        }
  std::string report = launch.name + std::string(": deadlock, no thread can go on:");
  for (const auto& [what, threads] : waiting)
    report += " " + std::to_string(threads.first) + " wait at " + what + " (such as " + where(*threads.second) + ")";
  return report;
}

void Grid::run() {
  const unsigned clusters = launch.grid.x * launch.grid.y * launch.grid.z / launch.cluster;
  std::vector<unsigned> order(clusters);
  for (unsigned i = 0; i < clusters; ++i) {
    const unsigned j = random.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  const size_t most = std::max(1, resident_blocks / launch.cluster);
  size_t started = 0;
  while (true) {
    while (started < clusters && resident_.size() < most) start_cluster(order[started++]);
    if (resident_.empty()) return;
    if ((ready_.empty() || random.below(4) == 0) && !let_a_copy_arrive() && ready_.empty())
      throw std::runtime_error(deadlock());
    Warp& warp = *ready_[random.below(ready_.size())];
    Cluster& cluster = *warp.block->cluster;
    run_warp(warp);
    if (cluster.live == 0) {
      end(cluster);
      std::erase_if(resident_, [&](const auto& other) { return other.get() == &cluster; });
    }
  }
}

void open_if_complete(Barrier& barrier, int expected) {
  if (barrier.arrived < expected) return;
  barrier.arrived = 0;
  barrier.result = std::exchange(barrier.votes, 0);
  grid->wake(barrier.waiting);
}

int arrive_and_wait(Barrier& barrier, int expected, const char* what, bool vote) {
  barrier.votes += vote;
  if (++barrier.arrived == expected) {
    open_if_complete(barrier, expected);
  } else {
    barrier.waiting.push_back(self);
    grid->wait(what);
  }
  return barrier.result;  // still of this round: the next one needs this thread
}

void run(const Launch& launch, std::function<void()> body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  check_limits(launch);
  Grid running(launch, std::move(body));
  grid = &running;
  const HiddenTensors hidden(launch);
  const WeakStores stores;
  const MemoryFaults faults;
  running.run();
}

}  // namespace emulator
