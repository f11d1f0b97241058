// wgmma.h — products of a warpgroup that run until somebody waits for them: nothing is read or written before the wait,
// and accumulators hold NaN until then.
#pragma once

#include "collective.h"
#include "matrix.h"

namespace emulator {

void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);
void issue_wgmma(float* d, int n, const uint32_t* a, uint64_t b_descriptor, Element element);
void set_max_registers();

template <typename T, int N>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_descriptor) {
  issue_wgmma(d, N, a, b_descriptor, kElement<T>);
}

// The four warps of a warpgroup did the same number of each.
void check_warpgroups(const Block& block);

}  // namespace emulator
