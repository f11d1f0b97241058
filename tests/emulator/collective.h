// collective.h — what lanes of a warp and threads of a block do together: shuffles, votes, barriers.
#pragma once

#include "faults.h"
#include "grid.h"

#include <bit>
#include <cstring>

namespace emulator {

constexpr unsigned kAllLanes = 0xffffffff;

// The lanes in `mask` each bring their operands; once all are there, the last one calls act(lanes), where lanes[i] are
// those of lane i (null where it is not in the mask), and all go on. Operands live on their lanes' stacks meanwhile.
template <typename Operands, typename Act>
void collective(unsigned mask, const char* instruction, Operands& mine, const Act& act) {
  Warp& its = warp();
  const unsigned bit = 1u << lane();
  if ((mask & bit) == 0) fail(std::string(instruction) + " by a lane that its mask leaves out");
  Meeting* meeting = nullptr;
  for (Meeting& other : its.meetings) {
    if (other.mask == mask && std::strcmp(other.instruction, instruction) == 0)
      meeting = &other;
    else if ((other.arrived & mask) != 0 && (other.mask & bit) != 0)  // they wait for each other
      fail(std::string(instruction) + " while lanes that it needs are at " + other.instruction);
  }
  if (meeting == nullptr) meeting = &its.meetings.emplace_back(Meeting{instruction, mask, 0, {}});
  meeting->arrived |= bit;
  meeting->operands[lane()] = &mine;
  if (meeting->arrived != mask) return grid->wait(instruction);

  Operands* lanes[32];
  for (int i = 0; i < 32; ++i) lanes[i] = static_cast<Operands*>(meeting->operands[i]);
  its.meetings.erase(its.meetings.begin() + (meeting - its.meetings.data()));
  act(lanes);
  Block& block = *its.block;
  for (unsigned others = mask & ~bit; others != 0; others &= others - 1)
    grid->wake(block.threads[self->linear / 32 * 32 + std::countr_zero(others)]);
}

template <typename T>
struct Exchange {
  T value;
  int from;
};

// The value of lane `from`, which must be in the mask.
template <typename T>
T shuffle(unsigned mask, const T& value, int from) {
  if ((mask >> from & 1) == 0) fail("shuffle from a lane that the mask leaves out");
  Exchange<T> mine{value, from};
  collective(mask, "shuffle", mine, [](auto lanes) {
    T values[32];
    for (int i = 0; i < 32; ++i)
      if (lanes[i] != nullptr) values[i] = lanes[i]->value;
    for (int i = 0; i < 32; ++i)
      if (lanes[i] != nullptr) lanes[i]->value = values[lanes[i]->from];
  });
  return mine.value;
}

struct Vote {
  unsigned value;
  unsigned result;
};

// Folds the values of all lanes into the one that each of them gets.
template <typename Fold>
unsigned vote(unsigned mask, const char* instruction, unsigned value, const Fold& fold) {
  Vote mine{value, 0};
  collective(mask, instruction, mine, [&](auto lanes) {
    unsigned result = 0;
    bool first = true;
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] == nullptr) continue;
      result = first ? lanes[i]->value : fold(result, lanes[i]->value);
      first = false;
    }
    for (int i = 0; i < 32; ++i)
      if (lanes[i] != nullptr) lanes[i]->result = result;
  });
  return mine.result;
}

}  // namespace emulator

inline int __syncthreads_count(int yes) {
  using namespace emulator;
  if (fault == Fault::kBarrier) return yes != 0;
  return arrive_and_wait(self->block->barriers[0], self->block->live, "__syncthreads", yes != 0);
}
inline void __syncthreads() { __syncthreads_count(0); }
inline int __syncthreads_or(int yes) { return __syncthreads_count(yes) != 0; }
inline int __syncthreads_and(int yes) { return __syncthreads_count(yes == 0) == 0; }

inline void __syncwarp(unsigned mask = emulator::kAllLanes) {
  char nothing = 0;
  emulator::collective(mask, "__syncwarp", nothing, [](auto) {});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int base = emulator::lane() / width * width;
  return emulator::shuffle(mask, value, base + (from & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emulator::lane(), from = lane ^ bits;
  return emulator::shuffle(mask, value, from < lane / width * width + width ? from : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned steps, int width = 32) {
  const int lane = emulator::lane();
  return emulator::shuffle(mask, value, lane % width + int(steps) < width ? lane + int(steps) : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned steps, int width = 32) {
  const int lane = emulator::lane();
  return emulator::shuffle(mask, value, lane % width >= int(steps) ? lane - int(steps) : lane);
}

inline unsigned __ballot_sync(unsigned mask, int yes) {
  return emulator::vote(mask, "__ballot_sync", yes != 0 ? 1u << emulator::lane() : 0,
                        [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int yes) {
  return emulator::vote(mask, "__any_sync", yes != 0, [](unsigned a, unsigned b) { return a | b; });
}
inline int __all_sync(unsigned mask, int yes) {
  return emulator::vote(mask, "__all_sync", yes != 0, [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return emulator::vote(mask, "__reduce_add_sync", value, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return emulator::vote(mask, "__reduce_max_sync", value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return emulator::vote(mask, "__reduce_min_sync", value, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
