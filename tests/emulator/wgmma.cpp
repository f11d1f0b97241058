// wgmma.cpp — see wgmma.h
#include "wgmma.h"

#include <algorithm>
#include <stdexcept>

namespace emulator {
namespace {

constexpr int kMaxN = 256;
constexpr uint32_t kPoison = 0xFFFFFFFF;

struct Product {  // of one lane
  float* values;  // of D
  const uint32_t* a;
  uint64_t b_descriptor;
  int n;
  Element element;
};

// B's rows of 16 elements, where its descriptor says that they are.
void read_b(uint64_t descriptor, int n, Element element, float (&b)[16][kMaxN]) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, eight_rows = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("wgmma: a descriptor of no 128-byte swizzle");
  for (int row = 0; row < n; ++row) {
    float elements[16];
    for (int half = 0; half < 2; ++half) {
      uint32_t address = start + row / 8 * eight_rows + row % 8 * 128 + half * 16;
      address ^= (address >> 7 & 7) << 4;
      const char* from = self->block->shared + address;
      shared_address(from, 16, 16, "wgmma");
      to_floats(from, element, 8, elements + 8 * half);
    }
    for (int k = 0; k < 16; ++k) b[k][row] = elements[k];
  }
}

void multiply(Product* const (&lanes)[32]) {
  const Product& first = *lanes[0];
  for (const Product* lane : lanes)
    if (lane->b_descriptor != first.b_descriptor || lane->n != first.n) fail("wgmma: lanes with different operands");
  static thread_local float b[16][kMaxN];
  read_b(first.b_descriptor, first.n, first.element, b);
  for (int r = 0; r < 8; ++r)
    for (int below = 0; below < 2; ++below) {
      float a[16], d[kMaxN];
      for (int l = 4 * r; l < 4 * r + 4; ++l)  // a[0..3] as for mma: rows r and r + 8, then columns 8 further
        for (int half = 0; half < 2; ++half)
          to_floats(&lanes[l]->a[2 * half + below], first.element, 2, &a[8 * half + 2 * (l % 4)]);
      const auto value = [&](int n) -> float& {
        return lanes[4 * r + n % 8 / 2]->values[n / 8 * 4 + below * 2 + n % 2];
      };
      for (int n = 0; n < first.n; ++n) d[n] = value(n);
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < first.n; ++n) d[n] += a[k] * b[k][n];
      for (int n = 0; n < first.n; ++n) value(n) = d[n];
    }
}

Wgmma& state() { return self->wgmma; }

const uint32_t* words(const void* registers) { return static_cast<const uint32_t*>(registers); }

void remember(const void* registers, size_t count) {
  state().at_fence[registers].assign(words(registers), words(registers) + count);
}

Wgmma::Accumulators* find(const float* d) {
  const auto found = std::find_if(state().accumulators.begin(), state().accumulators.end(),
                                  [&](const auto& accumulators) { return accumulators.d == d; });
  return found == state().accumulators.end() ? nullptr : &*found;
}

// That these registers hold what they held at the last fence, as far as earlier products made them known.
void check_fenced(const void* registers, size_t count, const char* which) {
  auto& known = state().at_fence;
  const auto found = known.find(registers);
  if (found == known.end()) return remember(registers, count);
  const std::vector<uint32_t>& then = found->second;
  if (!std::equal(then.begin(), then.begin() + std::min(count, then.size()), words(registers)))
    fail(std::string("wgmma: ") + which + " changed after wgmma_fence");
}

}  // namespace

void wgmma_fence() {
  char nothing = 0;
  collective(kAllLanes, "wgmma_fence", nothing, [](auto&) {});
  state().fenced = true;
  for (auto& [registers, values] : state().at_fence) std::copy_n(words(registers), values.size(), values.begin());
}

void issue_wgmma(float* d, int n, const uint32_t* a, uint64_t b_descriptor, Element element) {
  char nothing = 0;
  collective(kAllLanes, "wgmma", nothing, [](auto&) {});
  if (!state().fenced) fail("wgmma without wgmma_fence before it");
  if (lane() == 0) ++warp().products;
  check_fenced(a, 4, "A");
  Wgmma::Accumulators* accumulators = find(d);
  if (accumulators == nullptr) {
    check_fenced(d, n / 2, "D");
    state().accumulators.push_back({d, {d, d + n / 2}, 0});
    accumulators = &state().accumulators.back();
    std::fill_n(reinterpret_cast<uint32_t*>(d), n / 2, kPoison);
    remember(d, n / 2);
  }
  ++accumulators->products;
  state().groups.back().push_back({d, n, a, {a[0], a[1], a[2], a[3]}, b_descriptor, int(element)});
}

void wgmma_commit() {
  char nothing = 0;
  collective(kAllLanes, "wgmma_commit", nothing, [](auto&) {});
  state().groups.emplace_back();
}

void wgmma_wait(int pending) {
  char nothing = 0;
  collective(kAllLanes, "wgmma_wait", nothing, [](auto&) {});
  if (fault == Fault::kWgmmaWait) return;
  auto& groups = state().groups;
  const int done = int(groups.size()) - 1 - pending;
  for (int g = 0; g < done; ++g) {
    for (const Wgmma::Issued& issued : groups[g]) {
      if (!std::equal(issued.a, issued.a + 4, issued.a_then))
        fail("wgmma: A changed before the product was waited for");
      Wgmma::Accumulators& accumulators = *find(issued.d);
      Product mine{accumulators.values.data(), issued.a, issued.b_descriptor, issued.n, Element(issued.element)};
      collective(kAllLanes, "wgmma", mine, [](auto& lanes) { multiply(lanes); });
      if (--accumulators.products > 0) continue;
      const auto* bits = reinterpret_cast<const uint32_t*>(issued.d);
      if (std::any_of(bits, bits + issued.n / 2, [](uint32_t word) { return word != kPoison; }))
        fail("wgmma: D was written before the product was waited for");
      std::copy(accumulators.values.begin(), accumulators.values.end(), issued.d);
      remember(issued.d, issued.n / 2);
      std::erase_if(state().accumulators, [&](const auto& other) { return other.d == issued.d; });
    }
  }
  if (done > 0) groups.erase(groups.begin(), groups.begin() + done);
}

void set_max_registers() {
  char nothing = 0;
  collective(kAllLanes, "setmaxnreg", nothing, [](auto&) {});
  if (lane() == 0) ++warp().register_changes;
}

void check_warpgroups(const Block& block) {
  for (size_t w = 0; w < block.warps.size(); ++w) {
    const Warp& warp = block.warps[w];
    const size_t first = w / 4 * 4;
    const Warp& other = block.warps[first];
    const bool whole = first + 4 <= block.warps.size() || warp.products + warp.register_changes == 0;
    if (!whole || warp.products != other.products || warp.register_changes != other.register_changes)
      throw std::runtime_error(std::string(grid->launch.name) + ": the warps of a warpgroup did not all do the same " +
                               "wgmma or setmaxnreg");
  }
}

}  // namespace emulator
