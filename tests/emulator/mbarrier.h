// mbarrier.h — barriers in shared memory, where arrivals and the bytes of copies are counted; and those of a cluster.
#pragma once

#include "faults.h"
#include "shared.h"

namespace emulator {

// What the 8 bytes hold.
struct Mbarrier {
  int32_t bytes;        // announced and not there, or there and not announced
  uint32_t mark : 8;    // of one that was initialised
  uint32_t phase : 1;   // modulo 2
  uint32_t count : 11;  // arrivals of a phase
  uint32_t left : 12;   // of them
};
static_assert(sizeof(Mbarrier) == 8);

void mbarrier_init(uint64_t* barrier, int count);
void mbarrier_fence_init();
void mbarrier_arrive(uint64_t* barrier, int rank, int bytes);  // in the block of that rank; announcing bytes
void mbarrier_wait(uint64_t* barrier, int parity);

// The one at this one's place in the block of that rank in the cluster; its initialisation must have been fenced.
Mbarrier& mbarrier_in(uint64_t* barrier, int rank, const char* instruction);
void count_bytes(Mbarrier& barrier, int bytes);

void cluster_sync();
void named_barrier(int id, int threads, bool waits);

}  // namespace emulator
