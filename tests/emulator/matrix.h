// matrix.h — what warps do with matrices: ldmatrix and mma.
#pragma once

#include "collective.h"
#include "shared.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace emulator {

enum class Element { kHalf, kBFloat16 };

template <typename T>
constexpr Element kElement = std::is_same_v<T, __half> ? Element::kHalf : Element::kBFloat16;

// `count` floats from 16-bit elements
void to_floats(const void* from, Element element, int count, float* to);

struct LoadMatrix {
  const char* row;   // this lane's, 16 bytes
  uint32_t* result;  // a word for each matrix
};

// Lanes 8i..8i+7 name the rows of the i-th of `count` 8x8 matrices; lane l gets elements c and c + 1 of its row r,
// r = l / 4 and c = 2 * (l % 4), or, transposed, those of its column.
template <bool kTransposed>
void load_matrices(const void* row, uint32_t* result, int count) {
  LoadMatrix mine{static_cast<const char*>(row), result};
  if (lane() < 8 * count) shared_address(row, 16, 16, "ldmatrix");
  collective(kAllLanes, "ldmatrix", mine, [&](auto lanes) {
    for (int i = 0; i < count; ++i)
      for (int l = 0; l < 32; ++l) {
        const int r = l / 4, c = 2 * (l % 4);
        uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
          const int row = kTransposed ? c + j : r, column = kTransposed ? r : c + j;
          std::memcpy(&pair[j], lanes[8 * i + row]->row + 2 * column, 2);
        }
        std::memcpy(&lanes[l]->result[i], pair, 4);
      }
  });
}

struct Multiply {
  float* d;
  const uint32_t *a, *b;
};

// D[16, 8] += A[16, 16] * B[16, 8] for the 32 lanes of a warp.
void multiply(Multiply* const (&lanes)[32], Element element);

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply mine{d, a, b};
  collective(kAllLanes, "mma", mine, [](auto& lanes) { multiply(lanes, kElement<T>); });
}

}  // namespace emulator
