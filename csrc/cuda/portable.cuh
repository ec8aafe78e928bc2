// What lets one kernel source be compiled by nvcc for the GPU and, in tests, by the host compiler
// for the runtime in tests/cuda_host that executes it on the CPU.
#pragma once

#ifdef MG2L_CUDA_HOST
#define MG2L_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream), cuda_host::launch(kernel, grid, block, __VA_ARGS__))
#else
#include <cuda_runtime.h>
#define MG2L_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif
