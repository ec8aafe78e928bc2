// Kernels of `film` and `film_backward`: plain pointers, no torch header.
//
// A thread works on a number of the features; neighbouring threads work on neighbouring ones, so
// that loads and stores coalesce. Where rows share scales and shifts, a warp sums the gradients of
// 32 columns of one of these over its rows: the warp looks at 32 rows at a time, a lane each, and
// then adds, in order, those that are its own. No atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kFilmThreads = 256;
constexpr int kFilmWarps = 4;  // of a block that sums

// Where the scale of a number of the features lies in arrays like `generated`, its shift `width`
// numbers on; -1 where the index of its row is out of range.
template <typename scalar_t>
__device__ int64_t film_place(const FilmArgs<scalar_t>& args, int64_t i) {
  const int64_t row = i / args.width % args.rows, group = i / args.width / args.rows;
  const int64_t latent = args.shared ? args.index[row] : row;
  if (latent < 0 || latent >= args.latents) return -1;
  return (group * args.latents + latent) * 2 * args.width + i % args.width;
}

// Launch: block kFilmThreads, grid.x * kFilmThreads >= groups * rows * width. Writes y.
template <typename scalar_t>
__global__ void film_kernel(FilmForwardArgs<scalar_t> args) {
  const FilmArgs<scalar_t>& in = args.in;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFilmThreads + threadIdx.x;
  if (i >= in.groups * in.rows * in.width) return;
  const int64_t place = film_place(in, i);
  if (place < 0) {
    args.y[i] = NAN;
    return;
  }
  const scalar_t* scale = in.generated + place;
  args.y[i] = (scalar_t(1) + scale[0]) * in.features[i] + scale[in.width];
}

// Launch: as above. Writes grad_features, and grad_generated unless rows share them.
template <typename scalar_t>
__global__ void film_backward_kernel(FilmBackwardArgs<scalar_t> args) {
  const FilmArgs<scalar_t>& in = args.in;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFilmThreads + threadIdx.x;
  if (i >= in.groups * in.rows * in.width) return;
  const int64_t place = film_place(in, i);
  const scalar_t grad = args.grad[i];
  args.grad_features[i] = place < 0 ? scalar_t(NAN) : grad * (scalar_t(1) + in.generated[place]);
  if (in.shared) return;
  args.grad_generated[place] = grad * in.features[i];
  args.grad_generated[place + in.width] = grad;
}

// Launch: block (32, kFilmWarps), grid (latents, y, groups), grid.y * kFilmWarps * 32 >= width;
// in.shared. Writes grad_generated.
template <typename scalar_t>
__global__ void film_backward_sums_kernel(FilmBackwardArgs<scalar_t> args) {
  const FilmArgs<scalar_t>& in = args.in;
  const int64_t latent = blockIdx.x, group = blockIdx.z, width = in.width;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * kFilmWarps + threadIdx.y) * 32;
  if (first >= width) return;
  const int64_t column = first + threadIdx.x;
  scalar_t scale = 0, shift = 0;
  for (int64_t start = 0; start < in.rows; start += 32) {
    const int64_t looked_at = start + threadIdx.x;
    const bool own = looked_at < in.rows && in.index[looked_at] == latent;
    unsigned rows = __ballot_sync(0xffffffffu, own);
    while (rows != 0) {
      const int64_t row = start + __ffs(static_cast<int>(rows)) - 1;
      rows &= rows - 1;
      if (column >= width) continue;
      const int64_t at = (group * in.rows + row) * width + column;
      scale += args.grad[at] * in.features[at];
      shift += args.grad[at];
    }
  }
  if (column >= width) return;
  scalar_t* to = args.grad_generated + (group * in.latents + latent) * 2 * width + column;
  to[0] = scale;
  to[width] = shift;
}

}  // namespace mg2l
