// bulk_copy.cpp — see bulk_copy.h
#include "bulk_copy.h"

#include "dependency.h"
#include "faults.h"
#include "mbarrier.h"
#include "shared.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace emulator {
namespace {

constexpr int kRowBytes = 128;  // of a box: what the swizzle spans

struct TensorMap {  // what the emulator keeps in a CUtensorMap
  uint64_t mark;
  const char* base;
  int64_t rows, columns;
  int box_rows;
};
constexpr uint64_t kMark = 0x70616d726f736e74;
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// A row's 16-byte units exchanged by bits 7 to 9 of their address.
uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

void arrive(const BulkCopy& copy) {
  if (copy.from == nullptr) return;  // NaN stays
  if (copy.box_rows == 0) {
    std::memcpy(copy.block->shared + copy.to, copy.from, copy.bytes);
    return;
  }
  for (int r = 0; r < copy.box_rows; ++r) {
    const int64_t row = copy.y + r;
    for (int b = 0; b < kRowBytes; b += 2) {
      const int64_t column = copy.x + b / 2;
      const bool inside = 0 <= row && row < copy.rows && 0 <= column && column < copy.columns;
      const uint32_t plain = copy.to + r * kRowBytes + b;
      char* to = copy.block->shared + (fault == Fault::kSwizzle ? plain : swizzle(plain));
      if (inside)
        std::memcpy(to, copy.from + (row * copy.columns + column) * 2, 2);
      else
        std::memset(to, 0, 2);
    }
  }
}

}  // namespace

CUtensorMap tensor_map(const void* base, int64_t rows, int64_t columns, int box_rows, int box_columns) {
  const bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0 && columns * 2 % 16 == 0 && rows > 0 && columns > 0 &&
                    box_columns * 2 == kRowBytes && 0 < box_rows && box_rows <= 256;
  if (!fits)
    throw std::invalid_argument("emulator: no tensor map of [" + std::to_string(rows) + ", " + std::to_string(columns) +
                                "] in boxes of [" + std::to_string(box_rows) + ", " + std::to_string(box_columns) +
                                "], or not on 16 bytes");
  const TensorMap mine{kMark, static_cast<const char*>(base), rows, columns, box_rows};
  CUtensorMap map = {};
  std::memcpy(&map, &mine, sizeof mine);
  return map;
}

void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier) {
  const uint32_t to = shared_address(shared, bytes, 16, "bulk_copy");
  check_aligned(global, 16, "bulk_copy");
  if (bytes <= 0 || bytes % 16 != 0) fail("bulk_copy of " + std::to_string(bytes) + " bytes");
  Mbarrier& its = mbarrier_in(barrier, self->block->rank, "bulk_copy");
  poison(shared, bytes);
  grid->in_flight.push_back({.block = self->block,
                             .barrier = &its,
                             .to = to,
                             .bytes = bytes,
                             .from = is_hidden(global) ? nullptr : static_cast<const char*>(global)});
}

void tensor_copy(void* shared, const CUtensorMap& map, int x, int y, uint64_t* barrier, unsigned mask) {
  TensorMap its;
  std::memcpy(&its, &map, sizeof its);
  if (its.mark != kMark) fail("tensor_copy_2d: not a tensor map");
  const int bytes = its.box_rows * kRowBytes;
  const uint32_t to = shared_address(shared, bytes, kRowBytes, "tensor_copy_2d");
  const auto& blocks = self->block->cluster->blocks;
  if (mask == 0 || mask >> blocks.size() != 0) fail("tensor_copy_2d to blocks that the cluster does not have");
  for (int rank = 0; rank < int(blocks.size()); ++rank) {
    if ((mask >> rank & 1) == 0) continue;
    Mbarrier& at = mbarrier_in(barrier, rank, "tensor_copy_2d");
    poison(blocks[rank]->shared + to, bytes);
    grid->in_flight.push_back({.block = blocks[rank].get(),
                               .barrier = &at,
                               .to = to,
                               .bytes = bytes,
                               .from = is_hidden(its.base) ? nullptr : its.base,
                               .rows = its.rows,
                               .columns = its.columns,
                               .x = x,
                               .y = y,
                               .box_rows = its.box_rows});
  }
}

bool let_a_copy_arrive() {
  auto& copies = grid->in_flight;
  if (copies.empty() || grid->arriving) return false;
  const size_t first = grid->random.below(copies.size());
  for (size_t i = 0; i < copies.size(); ++i) {
    const size_t chosen = (first + i) % copies.size();
    Waiters& waiting = grid->at_mbarrier[copies[chosen].barrier];
    if (waiting.empty()) continue;
    grid->arriving = copies[chosen];
    copies.erase(copies.begin() + chosen);
    const size_t who = grid->random.below(waiting.size());
    grid->wake(*waiting[who]);
    grid->bringer = waiting[who];
    waiting.erase(waiting.begin() + who);
    return true;
  }
  return false;
}

void finish_arriving_copy() {
  if (grid->bringer != self) return;
  const BulkCopy copy = *grid->arriving;
  grid->arriving.reset();
  grid->bringer = nullptr;
  arrive(copy);
  count_bytes(*static_cast<Mbarrier*>(copy.barrier), copy.bytes);
}

void check_copies_arrived(const Cluster& cluster) {
  for (const BulkCopy& copy : grid->in_flight)
    if (copy.block->cluster == &cluster)
      throw std::runtime_error(std::string(grid->launch.name) + ": a block ended while a copy into it was under way");
}

}  // namespace emulator
