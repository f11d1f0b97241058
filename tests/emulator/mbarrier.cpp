// mbarrier.cpp — see mbarrier.h
#include "mbarrier.h"

#include "bulk_copy.h"

namespace emulator {
namespace {

constexpr uint32_t kMark = 0x5B;

Mbarrier& initialised(void* at, const char* instruction) {
  auto& barrier = *static_cast<Mbarrier*>(at);
  if (barrier.mark != kMark) fail(std::string(instruction) + ": the mbarrier was not initialised");
  return barrier;
}

void end_if_complete(Mbarrier& barrier) {
  if (barrier.left > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.left = barrier.count;
  grid->wake(grid->at_mbarrier[&barrier]);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, int count) {
  shared_address(barrier, 8, 8, "mbarrier_init");
  if (count < 1 || count > 2047) fail("mbarrier_init: a count of " + std::to_string(count));
  *reinterpret_cast<Mbarrier*>(barrier) = {0, kMark, 0, uint32_t(count), uint32_t(count)};
  self->block->unfenced[barrier] = self;
}

void mbarrier_fence_init() {
  std::erase_if(self->block->unfenced, [](const auto& barrier) { return barrier.second == self; });
}

Mbarrier& mbarrier_in(uint64_t* barrier, int rank, const char* instruction) {
  const uint32_t at = shared_address(barrier, 8, 8, instruction);
  const auto& blocks = self->block->cluster->blocks;
  if (rank < 0 || rank >= int(blocks.size())) fail(std::string(instruction) + ": no such block in the cluster");
  Block& block = *blocks[rank];
  if (block.live == 0) fail(std::string(instruction) + ": the block whose mbarrier it is has ended");
  void* its = block.shared + at;
  if (block.unfenced.contains(its))
    fail(std::string(instruction) + ": the mbarrier's initialisation was not fenced (mbarrier_fence_init)");
  return initialised(its, instruction);
}

void count_bytes(Mbarrier& barrier, int bytes) {
  barrier.bytes -= bytes;
  end_if_complete(barrier);
}

void mbarrier_arrive(uint64_t* barrier, int rank, int bytes) {
  grid->yield();  // others may arrive first
  const bool here = rank == self->block->rank;
  shared_address(barrier, 8, 8, "mbarrier_arrive");
  Mbarrier& its = here ? initialised(barrier, "mbarrier_arrive") : mbarrier_in(barrier, rank, "mbarrier_arrive");
  if (its.left == 0) fail("mbarrier_arrive: more arrivals than the mbarrier counts");
  its.bytes += bytes;
  --its.left;
  end_if_complete(its);
}

void mbarrier_wait(uint64_t* barrier, int parity) {
  if (fault == Fault::kMbarrierWait) return;
  shared_address(barrier, 8, 8, "mbarrier_wait");
  Mbarrier& its = initialised(barrier, "mbarrier_wait");
  while (its.phase == uint32_t(parity & 1)) {
    grid->at_mbarrier[&its].push_back(self);
    grid->wait("mbarrier_wait");
    finish_arriving_copy();
  }
}

void cluster_sync() {
  Cluster& cluster = *self->block->cluster;
  if (fault != Fault::kBarrier) arrive_and_wait(cluster.barrier, cluster.live, "cluster_sync");
}

void named_barrier(int id, int threads, bool waits) {
  if (id < 0 || id >= Block::kBarriers) fail("named barrier " + std::to_string(id) + " of 16");
  if (threads < 32 || threads % 32 != 0) fail("named barrier of " + std::to_string(threads) + " threads");
  if (fault == Fault::kBarrier) return;
  Barrier& barrier = self->block->barriers[id];
  if (barrier.arrived > 0 && barrier.expected != threads)
    fail("named barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads where others expect " +
         std::to_string(barrier.expected));
  barrier.expected = threads;
  if (waits) {
    arrive_and_wait(barrier, threads, "named_barrier_sync");
  } else {
    ++barrier.arrived;
    open_if_complete(barrier, threads);
  }
}

}  // namespace emulator
