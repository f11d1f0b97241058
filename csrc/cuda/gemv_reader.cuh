// gemv_reader.cuh — one warp's way through the units of a packed weight: what it loads for one, and the product of one.
//
// Loads are issued in the order of the calls and wait in registers: 8 words of codes and kGroups pairs of params, rows
// r and r + 8 of the tile, for each unit on the way. It knows neither the sharing of work nor what becomes of the sums.
#pragma once

#include "packed.cuh"
#include "ptx.cuh"

namespace tinyserve::cuda {

// A packed weight and how far its parts lie from each other, in bytes.
struct GemvWeight {
  const char* qweight;
  const char* qparams;
  int blocks_k;       // of 64 k
  int units;          // of 128 k, in a tile
  int half_unit;      // 1 where the last unit of a tile has 64 k, else 0
  int64_t param_row;  // params of 64 rows
  int param_step;     // params of one unit: 0 where a group is a whole row
};

// kGroups: groups in a unit, 4 of 32 k, 2 of 64 or 1 of 128 and more.
template <int kGroups>
struct GemvUnit {
  uint4 words[2] = {};  // the first and the second 64 k
  uint2 params[kGroups] = {};
};

template <int kGroups>
class GemvReader {
 public:
  // From unit `unit` of tile `tile` on, where of each tile the units first..end - 1 are wanted.
  __device__ GemvReader(const GemvWeight& weight, int tile, int unit, int first, int end)
      : weight_(weight), tile_(tile), first_(first), left_at_end_(weight.units - end) {
    seek(unit);
  }

  // The last unit of a row with an odd number of blocks has 64 k; the rest stays as it was: x is zero there.
  __device__ void load(GemvUnit<kGroups>& unit) {
    const bool whole = left_ != weight_.half_unit;
    unit.words[0] = load_evict_first_16(words_);
    if (whole) unit.words[1] = load_evict_first_16(words_ + kBlockBytes);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (group < (kGroups + 1) / 2 || whole) unit.params[group] = load_read_only_8(params_ + group * kParamBytes);
    }
    words_ += 2 * kBlockBytes;
    params_ += weight_.param_step;
    if (--left_ == left_at_end_) {
      ++tile_;
      seek(first_);
    }
  }

 private:
  __device__ void seek(int unit) {
    const int lane = threadIdx.x % 32, block = tile_ / 4, in_block = tile_ % 4;
    words_ = weight_.qweight + (int64_t(block) * weight_.blocks_k + 2 * unit) * kBlockBytes + in_block * kTileBytes +
             lane * 16;
    params_ =
        weight_.qparams + block * weight_.param_row + int64_t(unit) * weight_.param_step + in_block * 64 + lane / 4 * 8;
    left_ = weight_.units - unit;
  }

  const GemvWeight& weight_;
  const char* words_;   // this lane's 16 bytes of the next unit
  const char* params_;  // this lane's two rows in its first group
  int tile_, left_;     // units of the tile that are not loaded
  int first_, left_at_end_;
};

// sums += the unit's 16 n x 128 k by 8 rows of x. `x`: this lane's row for ldmatrix at the unit's first k.
template <typename T, int kGroups>
__device__ inline void multiply(float (&sums)[4], const GemvUnit<kGroups>& unit, const char* x) {
  constexpr int kWords = 8 / kGroups;  // of a group
  const uint32_t words[8] = {unit.words[0].x, unit.words[0].y, unit.words[0].z, unit.words[0].w,
                             unit.words[1].x, unit.words[1].y, unit.words[1].z, unit.words[1].w};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const RowParams<T> rows(unit.params[group]);
    float group_sums[4] = {};
#pragma unroll
    for (int i = group * kWords; i < (group + 1) * kWords; i += 2) {
      uint32_t fragments[4], a[4];
      ldmatrix_x4(fragments, x + i * kTile * 2);
      dequantize<T>(a, words[i], rows);
      mma_m16n8k16<T>(group_sums, a, reinterpret_cast<const uint32_t (&)[2]>(fragments[0]));
      dequantize<T>(a, words[i + 1], rows);
      mma_m16n8k16<T>(group_sums, a, reinterpret_cast<const uint32_t (&)[2]>(fragments[2]));
    }
    const float low = scale_of<T>(unit.params[group].x), high = scale_of<T>(unit.params[group].y);
    sums[0] += group_sums[0] * low;
    sums[1] += group_sums[1] * low;
    sums[2] += group_sums[2] * high;
    sums[3] += group_sums[3] * high;
  }
}

}  // namespace tinyserve::cuda
