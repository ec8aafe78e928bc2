// Kernels of `surrogate` and `value_loss`: plain pointers, no torch header.
//
// One block for each agent: its threads walk the rows, writing the slope of each, and their sums
// are added in shared memory, in one order. The rows of a minibatch keep a block busy for some
// microseconds, about what a launch takes.
#pragma once

#include <cmath>
#include <cstdint>

#include "block_sums.cuh"
#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kClippedThreads = 256;
constexpr int kClippedWarps = kClippedThreads / 32;
constexpr int kClippedSums = 3;  // loss, kl and fraction of clipped rows

// `x` between two bounds; NaN stays.
template <typename scalar_t>
__device__ scalar_t bounded(scalar_t x, scalar_t low, scalar_t high) {
  const scalar_t above = x < low ? low : x;
  return above > high ? high : above;
}

// Loss of a row, what is measured beside it, and the derivative of the loss; without the weight.
template <typename scalar_t>
struct ClippedRow {
  scalar_t loss, kl, clipped, slope;
};

// A row of the surrogate whose log-probability has changed by so much.
template <typename scalar_t>
__device__ ClippedRow<scalar_t> surrogate_row(scalar_t change, scalar_t advantage, scalar_t clip) {
  const scalar_t ratio = exp(change), plain = ratio * advantage;
  const scalar_t clipped = bounded(ratio, scalar_t(1) - clip, scalar_t(1) + clip) * advantage;
  const scalar_t least = clipped < plain ? clipped : plain, moved = ratio - scalar_t(1);
  const bool outside = (moved < 0 ? -moved : moved) > clip;
  return {-least, moved - change, outside ? scalar_t(1) : scalar_t(0),
          plain <= clipped ? -plain : scalar_t(0)};
}

template <typename scalar_t>
struct SurrogateRows {
  static __device__ ClippedRow<scalar_t> row(const ClippedArgs<scalar_t>& args, int64_t at) {
    return surrogate_row(args.first[at] - args.second[at], args.third[at], args.clip);
  }
};

template <typename scalar_t>
struct ValueRows {
  static __device__ scalar_t loss(scalar_t error, scalar_t delta) {
    const scalar_t size = error < 0 ? -error : error, half = scalar_t(0.5);
    return size <= delta ? half * error * error : delta * (size - half * delta);
  }

  static __device__ ClippedRow<scalar_t> row(const ClippedArgs<scalar_t>& args, int64_t at) {
    const scalar_t target = args.third[at], error = args.first[at] - target;
    const scalar_t plain = loss(error, args.delta);
    const scalar_t slope = bounded(error, -args.delta, args.delta);
    if (isinf(args.clip)) return {plain, 0, 0, slope};
    const scalar_t old = args.second[at], moved = args.first[at] - old;
    const scalar_t clipped = loss(old + bounded(moved, -args.clip, args.clip) - target, args.delta);
    // Where the clipped one is larger it is constant, unless they differ by rounding.
    if ((moved < 0 ? -moved : moved) <= args.clip) return {plain, 0, 0, slope};
    return {plain > clipped ? plain : clipped, 0, 0, plain >= clipped ? slope : scalar_t(0)};
  }
};

// Launch: block kClippedThreads, grid.x = agents. Writes every output.
template <template <typename> class Rows, typename scalar_t>
__global__ void clipped_kernel(ClippedArgs<scalar_t> args) {
  __shared__ double shared[kClippedSums][kClippedWarps];
  const int64_t agent = blockIdx.x, start = agent * args.rows;
  double sums[kClippedSums] = {};
  for (int64_t i = threadIdx.x; i < args.rows; i += kClippedThreads) {
    const scalar_t weight = args.weights == nullptr ? args.weight : args.weights[start + i];
    const ClippedRow<scalar_t> row = Rows<scalar_t>::row(args, start + i);
    args.slope[start + i] = row.slope * weight;
    sums[0] += static_cast<double>(row.loss * weight);
    sums[1] += static_cast<double>(row.kl * weight);
    sums[2] += static_cast<double>(row.clipped * weight);
  }
  block_sums(sums, shared);
  if (threadIdx.x > 0) return;
  args.loss[agent] = static_cast<scalar_t>(sums[0]);
  if (args.kl != nullptr) args.kl[agent] = static_cast<scalar_t>(sums[1]);
  if (args.clip_fraction != nullptr) args.clip_fraction[agent] = static_cast<scalar_t>(sums[2]);
}

}  // namespace mg2l
