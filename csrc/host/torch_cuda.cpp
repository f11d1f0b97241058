// torch_cuda.cpp — stands in for torch's libtorch_cuda.so while _cuda is linked, so that no CUDA build of torch is
// needed.
//
// _cuda then names libtorch_cuda.so among the libraries that it needs. Without that the loader would not look there for
// the functions below, though Python has long loaded it. Never loaded itself.

extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
