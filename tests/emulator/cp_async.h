// cp_async.h — copies that a thread starts and whose data is not there before it has waited for them.
#pragma once

#include "dependency.h"
#include "faults.h"
#include "shared.h"

namespace emulator {

inline void cp_async(void* shared, const void* global, int bytes, int size = 16) {
  shared_address(shared, size, size, "cp.async");
  if (bytes < 0 || bytes > size) fail("cp.async of " + std::to_string(bytes) + " bytes");
  if (bytes > 0) check_aligned(global, size, "cp.async");
  poison(shared, size);
  if (bytes > 0 && is_hidden(global)) return;  // NaN stays
  self->copies.back().push_back({shared, global, bytes, size});
}

inline void cp_async_commit() { self->copies.emplace_back(); }

// All groups have arrived but the `pending` last ones.
inline void cp_async_wait(int pending) {
  if (fault == Fault::kCpAsyncWait) return;
  auto& groups = self->copies;
  const int done = int(groups.size()) - 1 - pending;
  if (done <= 0) return;
  for (int i = 0; i < done; ++i)
    for (const Copy& copy : groups[i]) {
      std::memset(copy.to, 0, copy.size);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  groups.erase(groups.begin(), groups.begin() + done);
}

}  // namespace emulator
