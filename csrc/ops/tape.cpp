// tape.cpp — the CPU's counterpart of a CUDA graph: the kernel calls of one step, recorded once and made again without
// Python, dispatcher, checks and allocations. Between two replays only what lies in the inputs' memory may change.
#include "tensors.h"

#include <memory>
#include <mutex>
#include <unordered_map>

namespace tinyserve {
namespace {

constexpr int64_t kAlignment = 64;  // bytes, a line of the cache

struct Tape {
  cpu::Calls calls;
  Tensor memory;                // where the work's tensors lie, one after another
  int64_t used = 0;             // bytes of it
  std::vector<Tensor> tensors;  // those that it had no room for
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

Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, std::optional<ScalarType> dtype) {
  if (!recording) return torch::stable::new_empty(like, sizes, dtype);
  const ScalarType type = dtype.value_or(like.scalar_type());
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int64_t strides[8], bytes = int64_t(aoti_torch_dtype_element_size(number));
  STD_TORCH_CHECK(sizes.size() <= std::size(strides), "a recorded tensor has at most ", std::size(strides), " sizes");
  int64_t elements = 1;
  for (size_t i = sizes.size(); i-- > 0; elements *= sizes.begin()[i]) strides[i] = elements;
  bytes *= elements;
  if (recording->used + bytes > recording->memory.numel()) {
    recording->tensors.push_back(torch::stable::new_empty(like, sizes, dtype));
    return recording->tensors.back();
  }
  char* start = static_cast<char*>(recording->memory.data_ptr()) + recording->used;
  recording->used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return torch::stable::from_blob(start, sizes, {strides, sizes.size()}, like.device(), type);
}

void tape_start(const Tensor& memory) {
  STD_TORCH_CHECK(!recording, "this thread records already");
  check_dim(memory, "memory", 1, "[bytes]");
  check_tensor(memory, "memory", {memory.size(0)}, ScalarType::Byte, memory);
  recording = std::unique_ptr<Tape>(new Tape{.calls = {}, .memory = memory, .used = 0, .tensors = {}});
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
