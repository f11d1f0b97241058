// sample.cu — the next token of each row: the likeliest, or one drawn from what top_k, top_p and min_p leave.
//
// One block a row, which is read from memory once, for its largest logit, and then from the second-level cache: two or
// three times for each of top_k and top_p, once to draw. Greedy rows end after the first. What is kept: the top_k
// likeliest; of these, from the likeliest on, up to the one with which their share of what top_k has left reaches
// top_p, that one included; of these, what has at least min_p times the likeliest one's probability. Among equal logits
// those of lower index come first, so a cut between them keeps just as many as a sort would. The token is where
// `uniform` falls when the kept ones lie side by side in the vocabulary's order, each as long as its probability. The
// same arguments give the same token. Shapes: SampleArgs in kernels.h. Test: tests/kernels/test_sample.py.
#include "launch.cuh"
#include "sample_pick.cuh"

namespace tinyserve::cuda {
namespace {

union SampleScratch {
  LargestScratch largest;
  CutScratch cut;
  PickScratch pick;
};

constexpr float kLog2E = 1.44269504f;

template <typename T>
__device__ int draw(const SampleRow<T>& row, const Largest& largest, const SampleArgs& a, SampleScratch& scratch) {
  const int at = blockIdx.x;
  const SampleWeights weight{logit_of(largest.order), kLog2E / a.temperature[at]};
  SampleCut cut;
  if (const int top_k = a.top_k[at]; 0 < top_k && top_k < row.size) {
    __syncthreads();
    cut = cut_row(
        row, cut, largest.floor, [](float) { return uint64_t(1); }, [=](uint64_t) { return uint64_t(top_k); },
        scratch.cut);
  }
  if (const float top_p = a.top_p[at]; top_p < 1.f) {
    __syncthreads();
    cut = cut_row(
        row, cut, largest.floor, [=](float logit) { return fixed_point(weight(logit)); },
        [=](uint64_t total) { return uint64_t(ceil(double(top_p) * double(total))); }, scratch.cut);
  }
  __syncthreads();
  return pick(row, weight, cut, a.min_p[at], a.uniform[at], scratch.pick);
}

template <typename T>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const SampleArgs a) {
  grid_dependency_wait();
  grid_dependency_launch();
  SampleScratch& scratch = *reinterpret_cast<SampleScratch*>(shared_memory());
  const int at = blockIdx.x, size = int(a.vocab_size);
  const T* logits = static_cast<const T*>(a.logits) + int64_t(at) * size;
  const bool on_16_bytes = reinterpret_cast<uintptr_t>(a.logits) % 16 == 0;
  const SampleRow<T> row{logits, size, on_16_bytes && size % kVecSize<T> == 0};

  const Largest largest = largest_of(row, scratch.largest);
  const bool is_greedy = a.temperature[at] < kGreedyTemperature || a.top_k[at] == 1 || a.top_p[at] < kGreedyTopP;
  int token = largest.index;
  if (largest.order >= kOrderOfInfinity || largest.order <= kOrderOfMinusInfinity)
    token = -1;
  else if (!is_greedy)
    token = draw(row, largest, a, scratch);
  if (threadIdx.x == 0) a.tokens[at] = token;
}

template <typename T>
void launch(const SampleArgs& a, void* stream) {
  launch_kernel("sample", sample_kernel<T>, dim3(a.rows), dim3(kSampleThreads), sizeof(SampleScratch), stream,
                LaunchOptions{.dependent = true}, a);
}

}  // namespace

void sample(const SampleArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch<decltype(type)>(args, stream); });
}

}  // namespace tinyserve::cuda
