// weak_stores.cpp — see weak_stores.h
#include "weak_stores.h"

#include "faults.h"

#include <algorithm>
#include <map>

namespace emulator {
namespace {

struct Weak {
  uint32_t* memory;  // as the running block sees it
  size_t words;
  std::vector<uint32_t> seen;  // as all blocks do
};
std::vector<Weak> weak;
std::map<int, std::map<uint32_t*, uint32_t>> unseen;  // by block: stores that only it sees
int running = -1;

int number(const Block& block) {
  const dim3 &at = block.index, &size = grid->launch.grid;
  return int(at.x + size.x * (at.y + size.y * at.z));
}

void leave_block() {
  for (Weak& part : weak)
    for (size_t i = 0; i < part.words; ++i)
      if (part.memory[i] != part.seen[i]) {
        unseen[running][&part.memory[i]] = part.memory[i];
        part.memory[i] = part.seen[i];
      }
}

}  // namespace

void weaken(void* memory, size_t bytes) { weak.push_back({static_cast<uint32_t*>(memory), bytes / 4, {}}); }

void forget_weak() { weak.clear(); }

WeakStores::WeakStores() {
  for (Weak& part : weak) part.seen.assign(part.memory, part.memory + part.words);
}

WeakStores::~WeakStores() {
  for (const auto& [block, stores] : unseen)
    for (const auto& [at, value] : stores) *at = value;
  unseen.clear();
  forget_weak();
  running = -1;
}

void enter_block(const Block& block) {
  if (weak.empty() || running == number(block)) return;
  leave_block();
  running = number(block);
  for (const auto& [at, value] : unseen[running]) *at = value;
  unseen.erase(running);
}

void publish_stores() {
  if (fault == Fault::kThreadfence) return;
  for (Weak& part : weak) part.seen.assign(part.memory, part.memory + part.words);
}

void publish_atomic(const void* at) {
  for (Weak& part : weak) {
    const auto* word = static_cast<const uint32_t*>(at);
    if (part.memory <= word && word < part.memory + part.words) part.seen[word - part.memory] = *word;
  }
}

}  // namespace emulator
