// Kernels of `innovation_moments` and its backward pass: plain pointers, no torch header.
//
// A block works on one agent in one context, whose transitions it looks up a chunk at a time. In
// the forward pass a thread owns an entry of the two matrices, in the backward pass a column of the
// gradient: each adds over the transitions in order, and no two write to the same place. Rows of a
// context are read from memory once and then from the first-level cache. Parallelism is contexts
// times agents: few blocks of short loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kInnovationThreads = 128;  // of a block, and transitions of a chunk
constexpr int kInnovationKinds = 3;      // transitions that follow none, one, and two

// Where transitions of a chunk, and the two before each, lie, of rows times agents; -1 where a
// place is no row. And how many of those two each follows.
struct InnovationChunk {
  int64_t at[3][kInnovationThreads];
  int followed[kInnovationThreads];
};

// The coefficients, in registers: nothing is indexed by what is known at run time alone.
struct InnovationWeights {
  double alone, first, second;

  // Of the transition before one that follows so many.
  __device__ double of_before(int followed) const { return followed == 1 ? alone : first; }
};

template <typename scalar_t>
__device__ InnovationWeights weights_of(const InnovationArgs<scalar_t>& args) {
  const scalar_t* given = args.coefficients;
  return {static_cast<double>(given[0]), static_cast<double>(given[1]),
          static_cast<double>(given[2])};
}

// Looks up transitions from `first` on. Begins and ends with a barrier.
template <typename scalar_t>
__device__ void look_up(const InnovationArgs<scalar_t>& args, int64_t context, int64_t agent,
                        int64_t first, InnovationChunk& chunk) {
  __syncthreads();
  const int64_t t = first + threadIdx.x;
  if (t < args.steps) {
    for (int lag = 0; lag < 3; ++lag) {
      const int64_t i = context * args.steps + t - lag;
      int64_t row = -1;
      if (t >= lag) row = args.places == nullptr ? i : args.places[i];
      row = row >= 0 && row < args.rows ? row * args.agents + agent : -1;
      chunk.at[lag][threadIdx.x] = row;
    }
    int followed = 0;
    for (bool follows = true; follows && followed < 2; followed += follows) {
      const int64_t now = chunk.at[followed][threadIdx.x];
      const int64_t before = chunk.at[followed + 1][threadIdx.x];
      follows = now >= 0 && before >= 0;
      const scalar_t* began = args.transitions + now * args.features;
      const scalar_t* ended = args.transitions + (before + 1) * args.features - args.observation;
      for (int64_t o = 0; follows && o < args.observation; ++o) follows = began[o] == ended[o];
    }
    chunk.followed[threadIdx.x] = followed;
  }
  __syncthreads();
}

// An innovation's number; NaN of what is no row, so that it is not hidden.
template <typename scalar_t>
__device__ double innovation(const InnovationArgs<scalar_t>& args, const InnovationChunk& chunk,
                             int t, int64_t column, const InnovationWeights& weights) {
  if (chunk.at[0][t] < 0) return NAN;
  double x = static_cast<double>(args.series[chunk.at[0][t] * args.width + column]);
  const int followed = chunk.followed[t];
  if (followed > 0) {
    const int64_t before = chunk.at[1][t] * args.width + column;
    x -= weights.of_before(followed) * static_cast<double>(args.series[before]);
  }
  if (followed > 1) {
    const int64_t earlier = chunk.at[2][t] * args.width + column;
    x -= weights.second * static_cast<double>(args.series[earlier]);
  }
  return x;
}

// Launch: grid.x = contexts * agents, block kInnovationThreads. Writes moments.
template <typename scalar_t>
__global__ void innovation_moments_kernel(InnovationArgs<scalar_t> args) {
  __shared__ InnovationChunk chunk;
  const int64_t context = blockIdx.x / args.agents, agent = blockIdx.x % args.agents;
  const int64_t entries = args.width * args.width;
  const InnovationWeights weights = weights_of(args);
  for (int64_t start = 0; start < entries; start += kInnovationThreads) {
    const int64_t entry = start + threadIdx.x;
    double none = 0, one = 0, two = 0;
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; entry < entries && t < count; ++t) {
        const double product = innovation(args, chunk, t, entry / args.width, weights) *
                               innovation(args, chunk, t, entry % args.width, weights);
        const int followed = chunk.followed[t];
        none += followed == 0 ? product : 0;
        one += followed == 1 ? product : 0;
        two += followed == 2 ? product : 0;
      }
    }
    if (entry >= entries) continue;
    const double steps = static_cast<double>(args.steps > 0 ? args.steps : 1);
    const int64_t between = args.agents * entries;
    double* to =
        args.moments + (context * kInnovationKinds * args.agents + agent) * entries + entry;
    to[0] = none / steps;
    to[between] = one / steps;
    to[2 * between] = two / steps;
  }
}

// Launch: grid.x * kInnovationThreads >= rows * agents * width. Writes grad_series.
template <typename scalar_t>
__global__ void innovation_moments_zero_kernel(InnovationArgs<scalar_t> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kInnovationThreads + threadIdx.x;
  if (i < args.rows * args.agents * args.width) args.grad_series[i] = 0;
}

// Launch: grid.x = contexts * agents, block kInnovationThreads. Adds to grad_series, and writes
// grad_coefficients.
template <typename scalar_t>
__global__ void innovation_moments_backward_kernel(InnovationArgs<scalar_t> args) {
  __shared__ InnovationChunk chunk;
  __shared__ double along[kInnovationKinds][kInnovationThreads];
  const int64_t context = blockIdx.x / args.agents, agent = blockIdx.x % args.agents;
  const int64_t width = args.width, entries = width * width;
  const InnovationWeights weights = weights_of(args);
  double alone = 0, first_of_two = 0, second = 0;  // gradients of the coefficients
  for (int64_t start = 0; start < width; start += kInnovationThreads) {
    const int64_t column = start + threadIdx.x;
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; column < width && t < count; ++t) {
        const int followed = chunk.followed[t];
        const int64_t matrix = (context * kInnovationKinds + followed) * args.agents + agent;
        const double* grad = args.grad + matrix * entries;
        double slope = 0;
        for (int64_t i = 0; i < width; ++i) {
          slope += (grad[i * width + column] + grad[column * width + i]) *
                   innovation(args, chunk, t, i, weights);
        }
        slope /= static_cast<double>(args.steps);
        if (chunk.at[0][t] >= 0) args.grad_series[chunk.at[0][t] * width + column] += slope;
        if (followed > 0) {
          const int64_t before = chunk.at[1][t] * width + column;
          args.grad_series[before] -= weights.of_before(followed) * slope;
          const double change = slope * static_cast<double>(args.series[before]);
          alone -= followed == 1 ? change : 0;
          first_of_two -= followed == 2 ? change : 0;
        }
        if (followed > 1) {
          const int64_t earlier = chunk.at[2][t] * width + column;
          args.grad_series[earlier] -= weights.second * slope;
          second -= slope * static_cast<double>(args.series[earlier]);
        }
      }
    }
  }
  along[0][threadIdx.x] = alone;
  along[1][threadIdx.x] = first_of_two;
  along[2][threadIdx.x] = second;
  __syncthreads();
  if (threadIdx.x >= kInnovationKinds) return;
  double total = 0;
  for (int thread = 0; thread < kInnovationThreads; ++thread) total += along[threadIdx.x][thread];
  const int64_t pair = context * args.agents + agent;
  args.grad_coefficients[pair * kInnovationKinds + threadIdx.x] = total;
}

}  // namespace mg2l
