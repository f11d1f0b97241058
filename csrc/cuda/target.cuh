// target.cuh — what the architecture of this compilation has. A kernel is compiled for all of them; where it uses an
// instruction that is missing it traps, and its launcher, which asks device.cuh, never starts it there.
#pragma once

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define TINYSERVE_SM90 1  // bulk and tensor copies, transaction barriers, clusters, programmatic dependent launch
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TINYSERVE_SM90A 1  // wgmma, setmaxnreg: on sm_90a and nowhere else
#endif
