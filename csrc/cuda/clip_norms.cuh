// Kernels of `clip_norms`: plain pointers, no torch header.
//
// The gradients of one group lie in many tensors, a stretch of memory in each. Blocks share all of
// them: each walks every stretch, leaping over what the others read, so that loads coalesce, and
// leaves one sum of squares. Then the same blocks add these sums up, in one order, and scale what
// they have read. A network's gradients are some 100 kB: either launch is over in microseconds.
#pragma once

#include <cmath>
#include <cstdint>

#include "block_sums.cuh"
#include "clip_norms_layout.h"
#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kClipWarps = kClipThreads / 32;

// Launch: block kClipThreads, grid (args.blocks, groups). Writes its part of partial.
template <typename scalar_t>
__global__ void clip_norms_sum_kernel(ClipArgs<scalar_t> args) {
  __shared__ double shared[1][kClipWarps];
  const int64_t group = blockIdx.y, stride = args.blocks * kClipThreads;
  double sums[1] = {};
  for (int64_t t = 0; t < args.count; ++t) {
    const int64_t size = args.size[t];
    const scalar_t* gradient = args.gradient[t] + group * size;
    for (int64_t i = blockIdx.x * kClipThreads + threadIdx.x; i < size; i += stride) {
      sums[0] += static_cast<double>(gradient[i] * gradient[i]);
    }
  }
  block_sums(sums, shared);
  if (threadIdx.x == 0) args.partial[group * args.parts + args.first + blockIdx.x] = sums[0];
}

// Launch: as before, when all sums are there. Scales the gradients, and writes norms.
template <typename scalar_t>
__global__ void clip_norms_scale_kernel(ClipArgs<scalar_t> args) {
  __shared__ double shared[1][kClipWarps];
  const int64_t group = blockIdx.y, stride = args.blocks * kClipThreads;
  double sums[1] = {};
  for (int64_t i = threadIdx.x; i < args.parts; i += kClipThreads) {
    sums[0] += args.partial[group * args.parts + i];
  }
  block_sums(sums, shared);
  const scalar_t norm = static_cast<scalar_t>(sqrt(sums[0]));
  if (threadIdx.x == 0 && blockIdx.x == 0 && args.first == 0) args.norms[group] = norm;
  const scalar_t scale = args.limit / (norm + static_cast<scalar_t>(kClipFloor));
  if (scale >= 1) return;  // but not where it is NaN
  for (int64_t t = 0; t < args.count; ++t) {
    const int64_t size = args.size[t];
    scalar_t* gradient = args.gradient[t] + group * size;
    for (int64_t i = blockIdx.x * kClipThreads + threadIdx.x; i < size; i += stride) {
      gradient[i] *= scale;
    }
  }
}

}  // namespace mg2l
