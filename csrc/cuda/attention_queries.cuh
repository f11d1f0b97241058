// attention_queries.cuh — the queries of a row tile on their way to shared memory.
#pragma once

#include "attention_merge.cuh"

namespace tinyserve::cuda {

// Puts 8 neighbours of a row's query, 16 bytes, in its place; `d`: the first one's. For a cache of 8 bits, of each 16
// elements the even ones come first: see attention_operand.cuh.
template <typename Shape>
__device__ inline void store_query(char* queries, int row, int d, uint4 bits) {
  if constexpr (Shape::kHasScales) {
    const auto evens = [](uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; };
    const auto odds = [](uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000); };
    const int chunk = d / 16 * 2, byte = d % 16;  // half of either chunk
    *reinterpret_cast<uint2*>(query_at<Shape>(queries, row, chunk) + byte) =
        make_uint2(evens(bits.x, bits.y), evens(bits.z, bits.w));
    *reinterpret_cast<uint2*>(query_at<Shape>(queries, row, chunk + 1) + byte) =
        make_uint2(odds(bits.x, bits.y), odds(bits.z, bits.w));
  } else {
    *reinterpret_cast<uint4*>(query_at<Shape>(queries, row, d / 8)) = bits;
  }
}

// Calls visit(row, first element, whether these 8 elements of it exist) for all that a row tile has room for.
template <typename Shape, typename Visit>
__device__ inline void each_query_piece(const AttentionJob& job, const AttentionWalk<Shape>& walk, const Visit& visit) {
  const int num_rows = walk.num_rows(job);
  constexpr int kPieces = Shape::kDim / 8;
  for (int item = threadIdx.x; item < Shape::kRows * kPieces; item += Shape::kThreads) {
    const int row = item / kPieces, d = item % kPieces * 8;
    visit(row, d, row < num_rows && d < job.a.head_dim);
  }
}

// Rows and elements that do not exist are zero.
template <typename Shape>
__device__ inline void load_queries(const AttentionJob& job, const AttentionWalk<Shape>& walk, char* queries) {
  const auto* q = static_cast<const typename Shape::T*>(job.a.q);
  each_query_piece(job, walk, [&](int row, int d, bool exists) {
    uint4 bits = {};
    if (exists) bits = *reinterpret_cast<const uint4*>(q + row_offset(job, walk, row) + d);
    store_query<Shape>(queries, row, d, bits);
  });
}

}  // namespace tinyserve::cuda
