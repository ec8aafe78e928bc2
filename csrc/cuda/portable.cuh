// What lets one kernel source be compiled by nvcc for the GPU and, in tests, by the host compiler
// for the runtime in tests/cuda_host that executes it on the CPU.
#pragma once

// MG2L_LAUNCH_SHARED launches with so many bytes of dynamic shared memory, which with the static
// one may be more than the 48 KiB that every kernel may have unasked; `kernel` is a plain name.
#ifdef MG2L_CUDA_HOST
#define MG2L_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream), cuda_host::launch(kernel, grid, block, __VA_ARGS__))
#define MG2L_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)          \
  (static_cast<void>(stream),                                                \
   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                        static_cast<int>(bytes)),                            \
   cuda_host::launch_shared(kernel, grid, block, bytes, __VA_ARGS__))

namespace mg2l {
inline void* dynamic_shared() { return cuda_host::dynamic_shared(); }
}  // namespace mg2l
#else
#include <cuda_runtime.h>
#define MG2L_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define MG2L_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)          \
  (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                        static_cast<int>(bytes)),                            \
   kernel<<<grid, block, bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__))

namespace mg2l {
extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
__device__ inline void* dynamic_shared() { return dynamic_shared_bytes; }
}  // namespace mg2l
#endif
