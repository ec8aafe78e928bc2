// Lets the host compiler take CUDA kernel source: `g++ -x c++ -include cuda_host.h kernel.cu`. No
// CUDA toolkit is needed. README.md says how it works.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define MG2L_CUDA_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// Blocks run one after another, so one copy of a shared variable is enough. It is thread-local only
// because the library's TLS segment then holds shared memory and nothing else, and the runtime can
// find, poison and watch it. (A section attribute would be the obvious way, but GCC ignores it on
// static variables of templates.)
#define __shared__ thread_local

// On code of the runtime that the kernel's file instantiates: its memory accesses are not the
// kernel's, so they are neither checked nor places to switch threads.
#define CUDA_HOST_RAW __attribute__((no_sanitize("thread"), noinline))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = void*;

enum cudaError_t {  // the values of the CUDA runtime
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace cuda_host {

using Body = void (*)(void* context);

// Calls `body(context)` once for every thread of every block.
void run(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes, Body body,
         void* context);

// Lets a kernel have more dynamic shared memory than fits into 48 KiB with its static one.
cudaError_t allow_dynamic_shared(const void* kernel, int bytes);

// The dynamic shared memory of the running block, aligned to 16 bytes.
void* dynamic_shared();

template <typename Kernel, typename... Args>
void launch_shared(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   Args... args) {
  auto body = [&]() CUDA_HOST_RAW { kernel(args...); };
  run(
      reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared_bytes,
      [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, Args... args) {
  launch_shared(kernel, grid, block, 0, args...);
}

}  // namespace cuda_host

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  return cuda_host::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
}

#include "intrinsics.h"
