// dependency.cpp — see dependency.h
#include "dependency.h"

#include "shared.h"

#include <algorithm>
#include <stdexcept>

namespace emulator {
namespace {

struct Hidden {
  char* memory;
  size_t bytes;
  std::vector<char> contents;  // while they are hidden
};
std::vector<Hidden> tensors;

void show() {
  for (Hidden& tensor : tensors) std::memcpy(tensor.memory, tensor.contents.data(), tensor.contents.size());
  tensors.clear();
}

}  // namespace

void hide_before_wait(void* memory, size_t bytes) { tensors.push_back({static_cast<char*>(memory), bytes, {}}); }

void forget_hidden() { tensors.clear(); }

bool is_hidden(const void* memory) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const Hidden& tensor) {
    return tensor.memory <= memory && memory < tensor.memory + tensor.bytes;
  });
}

HiddenTensors::HiddenTensors(const Launch& launch) {
  if (!launch.dependent) forget_hidden();
  for (Hidden& tensor : tensors) {
    tensor.contents.assign(tensor.memory, tensor.memory + tensor.bytes);
    poison(tensor.memory, tensor.bytes);
  }
}

HiddenTensors::~HiddenTensors() { show(); }

void grid_dependency_wait() {
  self->block->waited = true;
  show();
}

void check_waited(const Block& block) {
  if (grid->launch.dependent && !block.waited)
    throw std::runtime_error(std::string(grid->launch.name) +
                             ": launched as dependent, but a block ended without grid_dependency_wait()");
}

}  // namespace emulator
