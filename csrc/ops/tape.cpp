// tape.cpp — the CPU's counterpart of a CUDA graph: the kernel calls of one step, recorded once and made again without
// Python, dispatcher, checks and allocations. Between two replays only what lies in the inputs' memory may change.
#include "tensors.h"

#include <memory>
#include <mutex>
#include <unordered_map>

namespace tinyserve {
namespace {

struct Tape {
  cpu::Calls calls;
  std::vector<Tensor> tensors;  // allocated meanwhile
};

thread_local std::unique_ptr<Tape> recording;

struct Shelf {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<Tape>> tapes;
  int64_t last = 0;
};

Shelf& shelf() {
  static Shelf& shelf = *new Shelf;  // never destroyed: its tensors would outlive torch
  return shelf;
}

}  // namespace

void keep_recorded(const Tensor& t) {
  if (recording) recording->tensors.push_back(t);
}

void tape_start() {
  STD_TORCH_CHECK(!recording, "this thread records already");
  recording = std::make_unique<Tape>();
  cpu::record_to(&recording->calls);
}

int64_t tape_end() {
  STD_TORCH_CHECK(recording != nullptr, "this thread does not record");
  cpu::record_to(nullptr);
  const std::lock_guard guard(shelf().mutex);
  shelf().tapes.emplace(++shelf().last, std::move(recording));
  return shelf().last;
}

void tape_replay(int64_t tape) {
  std::shared_ptr<Tape> found;
  {
    const std::lock_guard guard(shelf().mutex);
    const auto entry = shelf().tapes.find(tape);
    STD_TORCH_CHECK(entry != shelf().tapes.end(), "there is no tape ", tape);
    found = entry->second;
  }
  for (const auto& call : found->calls) call();
}

void tape_drop(int64_t tape) {
  const std::lock_guard guard(shelf().mutex);
  shelf().tapes.erase(tape);
}

}  // namespace tinyserve
