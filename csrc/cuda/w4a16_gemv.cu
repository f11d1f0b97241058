// w4a16_gemv.cu — y = x @ dequant(weight)^T for at most 8 rows, as in decode: bound by reading the weight once.
//
// One persistent CTA per multiprocessor. Each warp keeps kDepth units of 1 KB on the way, in registers, 64 KB a CTA,
// from before the kernel that x comes from has ended until its last unit. Codes become integers code - zero, the A
// operand of tensor cores whose 8 columns are the rows of x (a row past the last repeats it); sums of a group in fp32,
// which meet the group's scale in fp32. Warps leave the sums of the tiles they touch in shared memory, one barrier, and
// a thread for each tile and row adds them in the order of k. Who has which units: gemv_plan.h. What stands before and
// after a product in a model is done on the way: gemv_norm.cuh, epilogue.cuh. sm_80 and up.
// Read from sm_90a's machine code: 16.6 instructions for a word of 8 weights in fp16, 18.5 in bf16, groups of 128; 20.7
// and 22.6, groups of 32. Never run on a GPU; kDepth, and what a sum across CTAs costs, are reasoned.
// Shapes: W4A16Args in kernels.h. Twin: cpu/w4a16_gemv.cpp. Test: tests/kernels/test_w4a16_gemv.py.
#include "device.cuh"
#include "epilogue.cuh"
#include "gemv_norm.cuh"
#include "gemv_plan.h"
#include "gemv_reader.cuh"
#include "launch.cuh"

namespace tinyserve::cuda {
namespace {

constexpr int kThreads = kGemvWarps * 32;
constexpr int kDepth = 4;

template <typename T>
struct GemvParams {
  const T* x;
  const T* norm_weight;  // [K], or null: x is multiplied as it is
  float eps;
  GemvWeight weight;
  GemvPlan plan;
  Epilogue<T> epilogue;
  float* workspace;  // parts of tiles that several CTAs share
  int arrivals_row;
  int m, k;
};

// The units that a CTA handles in one pass: of its tiles `first_tile`.. those of k from `first` to `end`; numbered from
// unit 0 of first_tile on, it has low..high - 1.
struct Pass {
  int first_tile, tiles;
  int first, end;
  int low, high;

  __device__ int length() const { return end - first; }  // of a tile, in this pass
  __device__ int warp_first(int warp) const { return low + int(int64_t(high - low) * warp / kGemvWarps); }

  // `begin`..`finish` - 1: all units of the CTA
  __device__ static Pass of(const GemvPlan& plan, int begin, int finish, int round, int chunk) {
    Pass pass{};
    pass.first_tile = begin / plan.units + round * kRoundTiles;
    pass.tiles = min(kRoundTiles, (finish - 1) / plan.units + 1 - pass.first_tile);
    pass.first = chunk * plan.chunk;
    pass.end = min(plan.units, pass.first + plan.chunk);
    const int origin = pass.first_tile * plan.units;  // equal runs come in one chunk, where units are numbered alike
    pass.low = plan.split() ? max(begin - origin, 0) : 0;
    pass.high = min(plan.split() ? finish - origin : pass.tiles * pass.length(), pass.tiles * pass.length());
    return pass;
  }
};

// Starts to copy `rows` rows [K], units first..end - 1 of k, with zeros past K.
template <typename T>
__device__ void stage(char* shared, int stride, const T* from, int rows, int k, const Pass& pass) {
  const int vecs = pass.length() * kUnitK / 8;
  for (int row = 0; row < rows; ++row) {
    for (int i = threadIdx.x; i < vecs; i += kThreads) {
      const int at = pass.first * kUnitK + i * 8;
      cp_async_16(shared + row * stride + i * 16, from + (at < k ? int64_t(row) * k + at : 0), at < k ? 16 : 0);
    }
  }
  cp_async_commit();
}

// This lane's fragment of sums [16 n, 8 m] into a part, [m][n].
__device__ inline void store_sums(float* part, const float (&sums)[4]) {
  const int lane = threadIdx.x % 32, n = lane / 4, m = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) part[(m + i % 2) * kPartStride + n + i / 2 * 8] = sums[i];
}

// Row m of a tile: what the warps have left of it in this pass, in the order of k.
__device__ inline void add_parts(float (&sums)[kItem], const float* parts, const Pass& pass, int tile, int m) {
  const int first = (tile - pass.first_tile) * pass.length(), end = first + pass.length();
  for (int warp = 0; warp < kGemvWarps; ++warp) {
    if (max(first, pass.warp_first(warp)) >= min(end, pass.warp_first(warp + 1))) continue;
    const float* part = parts + (tile - pass.first_tile + warp) * kPartFloats + m * kPartStride;
#pragma unroll
    for (int i = 0; i < kItem; ++i) sums[i] += part[i];
  }
}

template <typename T, int kGroups>
__global__ void __launch_bounds__(kThreads, 1) w4a16_gemv_kernel(const GemvParams<T> p) {
  const GemvPlan& plan = p.plan;
  const int lane = threadIdx.x % 32, stride = plan.x_stride;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);  // the compiler sees: the same for all lanes
  char* x = shared_memory();
  float* parts = reinterpret_cast<float*>(x + plan.rows * stride);
  float* totals = parts + plan.parts * kPartFloats;  // [tile][m][16], over chunks of k
  int* flag = reinterpret_cast<int*>(totals + plan.totals * kItem);
  // lanes 8i..8i + 7 name rows 0..7 at 8i elements of k
  const char* x_row = x + min(lane % 8, p.m - 1) * stride + lane / 8 * 16;

  const int begin = plan.first_unit(blockIdx.x), finish = plan.first_unit(blockIdx.x + 1);
  const int rounds = ((finish - 1) / plan.units - begin / plan.units) / kRoundTiles + 1;
  for (int i = 0; i < rounds * plan.chunks; ++i) {
    const int chunk = i % plan.chunks;
    const Pass pass = Pass::of(plan, begin, finish, i / plan.chunks, chunk);
    const int length = pass.length();
    const int from = pass.warp_first(warp), to = pass.warp_first(warp + 1);
    const int first_tile = from / length, first_unit = from % length;
    GemvReader<kGroups> reader(p.weight, pass.first_tile + first_tile, pass.first + first_unit, pass.first, pass.end);
    GemvUnit<kGroups> ring[kDepth];
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {
      if (slot < to - from) reader.load(ring[slot]);
    }
    const bool norm = i == 0 && p.norm_weight != nullptr;  // then x comes in one chunk
    char* norm_weight = x + p.m * stride;
    if (norm) stage(norm_weight, 0, p.norm_weight, 1, p.k, pass);
    if (i == 0) {
      grid_dependency_launch();
      grid_dependency_wait();
    } else {
      __syncthreads();  // x and the parts of the pass before have been read
    }
    if (i == 0 || plan.chunks > 1) stage(x, stride, p.x, p.m, p.k, pass);
    cp_async_wait<0>();
    if (norm) normalize_rows<T>(x, stride, p.m, p.k, length * kUnitK / 8, norm_weight, p.eps, parts);
    __syncthreads();

    float sums[4] = {};
    float* part = parts + (first_tile + warp) * kPartFloats;
    const char* x_at = x_row + first_unit * (kUnitK * 2);
    int left_in_tile = length - first_unit;
    for (int left = to - from; left > 0; left -= kDepth) {
#pragma unroll
      for (int slot = 0; slot < kDepth; ++slot) {
        if (slot < left) {
          multiply<T, kGroups>(sums, ring[slot], x_at);
          if (slot + kDepth < left) reader.load(ring[slot]);
          x_at += kUnitK * 2;
          if (--left_in_tile == 0 || slot + 1 == left) {
            store_sums(part, sums);
            sums[0] = sums[1] = sums[2] = sums[3] = 0.f;
            part += kPartFloats;
            x_at = x_row;
            left_in_tile = length;
          }
        }
      }
    }
    __syncthreads();

    for (int item = threadIdx.x; item < pass.tiles * p.m; item += kThreads) {
      const int tile = pass.first_tile + item / p.m, m = item % p.m;
      float sums[kItem] = {};
      float* total = totals + item * kItem;
      if (chunk > 0) {
        for (int j = 0; j < kItem; ++j) sums[j] = total[j];
      }
      add_parts(sums, parts, pass, tile, m);
      if (chunk + 1 < plan.chunks) {
        for (int j = 0; j < kItem; ++j) total[j] = sums[j];
      } else if (plan.split() && (tile * plan.units < begin || (tile + 1) * plan.units > finish)) {
        store_part(p.workspace, Parts::of(plan.share, tile).slot(blockIdx.x), p.m, m, sums);
      } else {
        p.epilogue.store(sums, m, tile * kTile);
      }
    }
  }

  if (!plan.split()) return;
  const int first_tile = begin / plan.units, last_tile = (finish - 1) / plan.units;
  for (int tile = first_tile; tile <= last_tile; tile += max(last_tile - first_tile, 1)) {
    if (tile * plan.units >= begin && (tile + 1) * plan.units <= finish) continue;
    const Parts shared = Parts::of(plan.share, tile);
    if (!arrives_last(p.arrivals_row, shared, flag, [] { __syncthreads(); })) continue;
    if (const int m = threadIdx.x; m < p.m) {
      float sums[kItem];
      sum_parts(p.workspace, shared, p.m, m, sums);
      p.epilogue.store(sums, m, tile * kTile);
    }
  }
}

GemvPlan plan_of(const W4A16Args& a) {
  const Device device = current_device();
  return GemvPlan::make(int(a.m), a.n, a.k, a.norm_weight != nullptr, device.multiprocessors, device.shared_bytes);
}

template <typename T, int kGroups>
void launch(const W4A16Args& a, void* stream) {
  const GemvPlan plan = plan_of(a);
  const int blocks_k = int((a.k + kPackBlock - 1) / kPackBlock);
  const GemvWeight weight{
      .qweight = reinterpret_cast<const char*>(a.qweight),
      .qparams = reinterpret_cast<const char*>(a.qparams),
      .blocks_k = blocks_k,
      .units = plan.units,
      .half_unit = blocks_k % 2,
      .param_row = packed_groups(a.k, a.group_size) * kParamBytes,
      .param_step = a.group_size == a.k ? 0 : kGroups * kParamBytes,
  };
  const GemvParams<T> params{
      .x = static_cast<const T*>(a.x),
      .norm_weight = static_cast<const T*>(a.norm_weight),
      .eps = a.eps,
      .weight = weight,
      .plan = plan,
      .epilogue = Epilogue<T>(a.bias, a.residual, a.y, a.n, a.silu_mul),
      .workspace = a.workspace,
      .arrivals_row = plan.split() ? arrivals_row(stream) : 0,
      .m = int(a.m),
      .k = int(a.k),
  };
  launch_kernel("w4a16_gemv", w4a16_gemv_kernel<T, kGroups>, dim3(plan.share.ctas), dim3(kThreads), plan.shared_bytes,
                stream, LaunchOptions{.dependent = true}, params);
}

template <typename T>
void launch_groups(const W4A16Args& a, void* stream) {
  if (a.group_size == a.k || a.group_size == 128) return launch<T, 1>(a, stream);
  if (a.group_size == 64) return launch<T, 2>(a, stream);
  launch<T, 4>(a, stream);
}

}  // namespace

int64_t gemv_workspace(const W4A16Args& args) { return plan_of(args).share.workspace(int(args.m)); }

bool gemv_takes_norm(const W4A16Args& args) { return plan_of(args).chunks == 1; }

void w4a16_gemv(const W4A16Args& args, void* stream) {
  if (args.dtype == Dtype::kBFloat16) return launch_groups<__nv_bfloat16>(args, stream);
  launch_groups<__half>(args, stream);
}

}  // namespace tinyserve::cuda
