// norm_row.cuh — how a norm reads its row, a block for each: every element once, the residual added, and kept in
// registers until the sums are known.
//
// Rows of up to kMaxNormThreads * kMaxKept items stay there; what is beyond is read again, from the second-level cache.
// What is summed and what is written: rms_norm.cu, layer_norm.cu.
#pragma once

#include "launch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace tinyserve::cuda {

constexpr int kMaxNormThreads = 1024;
constexpr int kMaxKept = 4;  // items that a thread keeps

// An item is what a thread reads at once: 16 bytes, of rows on 16 bytes whose channels are whole vectors...
template <typename T>
struct VecItems {
  using Element = T;
  using Item = Vec<T>;
  static constexpr int kSize = kVecSize<T>;
  static __device__ Item read(const T* from) { return load(from); }
  static __device__ Item read_once(const T* from) { return load_streaming(from); }
  static __device__ void write(T* to, const Item& item) { store(to, item); }
};

// ...or one element, of any row.
template <typename T>
struct SingleItems {
  using Element = T;
  struct Item {
    float values[1];
  };
  static constexpr int kSize = 1;
  static __device__ Item read(const T* from) { return {{float(*from)}}; }
  static __device__ Item read_once(const T* from) { return read(from); }
  static __device__ void write(T* to, const Item& item) { *to = T(item.values[0]); }
};

template <typename Items>
class NormRow {
  using T = typename Items::Element;
  using Item = typename Items::Item;

 public:
  // `x` and `residual` (or null): [T, channels]; this block's row is that of its index.
  __device__ NormRow(const T* x, T* residual, int channels)
      : x_(x + int64_t(blockIdx.x) * channels),
        residual_(residual == nullptr ? nullptr : residual + int64_t(blockIdx.x) * channels),
        items_(channels / Items::kSize) {}

  // Reads this thread's items, adds and stores the residual, and calls f(item) with each, as stored.
  template <typename F>
  __device__ void read(const F& f) {
#pragma unroll
    for (int k = 0; k < kMaxKept; ++k) {
      if (const int i = k * blockDim.x + threadIdx.x; i < items_) f(kept_[k] = summed(i));
    }
    for (int i = kMaxKept * blockDim.x + threadIdx.x; i < items_; i += blockDim.x) f(summed(i));
  }

  // Calls f(first channel, item) with each of them again.
  template <typename F>
  __device__ void again(const F& f) const {
#pragma unroll
    for (int k = 0; k < kMaxKept; ++k) {
      if (const int i = k * blockDim.x + threadIdx.x; i < items_) f(i * Items::kSize, kept_[k]);
    }
    const T* from = residual_ != nullptr ? residual_ : x_;
    for (int i = kMaxKept * blockDim.x + threadIdx.x; i < items_; i += blockDim.x)  // this thread stored it
      f(i * Items::kSize, Items::read(from + int64_t(i) * Items::kSize));
  }

 private:
  __device__ Item summed(int i) {
    const int64_t at = int64_t(i) * Items::kSize;
    Item h = Items::read_once(x_ + at);
    if (residual_ != nullptr) {
      const Item old = Items::read(residual_ + at);
#pragma unroll
      for (int j = 0; j < Items::kSize; ++j)
        h.values[j] = float(T(h.values[j] + old.values[j]));  // the norm of what is stored
      Items::write(residual_ + at, h);
    }
    return h;
  }

  const T* x_;
  T* residual_;
  int items_;
  Item kept_[kMaxKept];
};

// Whether rows of `channels` at these addresses can be read 16 bytes at a time.
template <typename T>
bool in_vecs(int64_t channels, std::initializer_list<const void*> addresses) {
  return channels % kVecSize<T> == 0 && std::all_of(addresses.begin(), addresses.end(), [](const void* address) {
           return reinterpret_cast<uintptr_t>(address) % 16 == 0;
         });
}

// Threads of a block for a row of this many items: whole warps.
inline dim3 norm_threads(int64_t items) {
  return dim3(std::min<int64_t>((items + kWarpSize - 1) / kWarpSize * kWarpSize, kMaxNormThreads));
}

}  // namespace tinyserve::cuda
