// bulk_copy.h — bulk and tensor copies: they arrive while somebody waits at their mbarrier, in a random order, and
// leave NaN behind until then.
#pragma once

#include "grid.h"

#include <cuda.h>

namespace emulator {

// `shared` and the mbarrier are those of the running block.
void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier);

// Into the same place of every block of the cluster whose bit is in the mask.
void tensor_copy(void* shared, const CUtensorMap& map, int x, int y, uint64_t* barrier, unsigned mask);

// What cuTensorMapEncodeTiled makes of a matrix of 16-bit elements, with rows swizzled over 128 bytes.
CUtensorMap tensor_map(const void* base, int64_t rows, int64_t columns, int box_rows, int box_columns);

// Chooses a copy that somebody waits for, and one of those to bring it; false where there is none.
bool let_a_copy_arrive();
void finish_arriving_copy();  // by that thread

// No copy into these blocks is still under way.
void check_copies_arrived(const Cluster& cluster);

}  // namespace emulator
