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
constexpr int kInnovationCases = 3;      // transitions that follow none, one, and two

// Where transitions of a chunk, and the two before each, lie, of rows times agents; -1 where a
// place is no row. And how many of those two each follows.
struct InnovationChunk {
  int64_t at[3][kInnovationThreads];
  int followed[kInnovationThreads];
};

// Coefficients of the transition before, and of the one before that, by how many are followed.
struct InnovationWeights {
  double of[kInnovationCases][2];
};

template <typename scalar_t>
__device__ InnovationWeights weights_of(const InnovationArgs<scalar_t>& args) {
  const scalar_t* given = args.coefficients;
  return {{{0, 0},
           {static_cast<double>(given[0]), 0},
           {static_cast<double>(given[1]), static_cast<double>(given[2])}}};
}

// Looks up transitions from `first` on. Begins and ends with a barrier.
template <typename scalar_t>
__device__ void look_up(const InnovationArgs<scalar_t>& args, int64_t context, int64_t agent,
                        int64_t first, InnovationChunk& chunk) {
  __syncthreads();
  const int64_t t = first + threadIdx.x;
  if (t < args.steps) {
    int64_t at[3];
    for (int lag = 0; lag < 3; ++lag) {
      const int64_t i = context * args.steps + t - lag;
      int64_t row = -1;
      if (t >= lag) row = args.places == nullptr ? i : args.places[i];
      at[lag] = row >= 0 && row < args.rows ? row * args.agents + agent : -1;
      chunk.at[lag][threadIdx.x] = at[lag];
    }
    int followed = 0;
    for (bool follows = true; follows && followed < 2; followed += follows) {
      follows = at[followed] >= 0 && at[followed + 1] >= 0;
      const scalar_t* began = args.transitions + at[followed] * args.features;
      const scalar_t* ended =
          args.transitions + (at[followed + 1] + 1) * args.features - args.observation;
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
  for (int lag = 1; lag <= followed; ++lag) {
    const int64_t before = chunk.at[lag][t] * args.width + column;
    x -= weights.of[followed][lag - 1] * static_cast<double>(args.series[before]);
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
    double sums[kInnovationCases] = {0, 0, 0};
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; entry < entries && t < count; ++t) {
        sums[chunk.followed[t]] += innovation(args, chunk, t, entry / args.width, weights) *
                                   innovation(args, chunk, t, entry % args.width, weights);
      }
    }
    if (entry >= entries) continue;
    const double steps = static_cast<double>(args.steps > 0 ? args.steps : 1);
    for (int kind = 0; kind < kInnovationCases; ++kind) {
      const int64_t matrix = (context * kInnovationCases + kind) * args.agents + agent;
      args.moments[matrix * entries + entry] = sums[kind] / steps;
    }
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
  __shared__ double along[kInnovationCases][kInnovationThreads];
  const int64_t context = blockIdx.x / args.agents, agent = blockIdx.x % args.agents;
  const int64_t width = args.width, entries = width * width;
  const InnovationWeights weights = weights_of(args);
  double sums[kInnovationCases] = {0, 0, 0};  // of the coefficients
  for (int64_t start = 0; start < width; start += kInnovationThreads) {
    const int64_t column = start + threadIdx.x;
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; column < width && t < count; ++t) {
        const int followed = chunk.followed[t];
        const int64_t matrix = (context * kInnovationCases + followed) * args.agents + agent;
        const double* grad = args.grad + matrix * entries;
        double slope = 0;
        for (int64_t i = 0; i < width; ++i) {
          slope += (grad[i * width + column] + grad[column * width + i]) *
                   innovation(args, chunk, t, i, weights);
        }
        slope /= static_cast<double>(args.steps);
        if (chunk.at[0][t] >= 0) args.grad_series[chunk.at[0][t] * width + column] += slope;
        for (int lag = 1; lag <= followed; ++lag) {
          const int64_t before = chunk.at[lag][t] * width + column;
          args.grad_series[before] -= weights.of[followed][lag - 1] * slope;
          const int coefficient = followed == 1 ? 0 : lag;
          sums[coefficient] -= slope * static_cast<double>(args.series[before]);
        }
      }
    }
  }
  for (int i = 0; i < kInnovationCases; ++i) along[i][threadIdx.x] = sums[i];
  __syncthreads();
  if (threadIdx.x >= kInnovationCases) return;
  double total = 0;
  for (int thread = 0; thread < kInnovationThreads; ++thread) total += along[threadIdx.x][thread];
  const int64_t pair = context * args.agents + agent;
  args.grad_coefficients[pair * kInnovationCases + threadIdx.x] = total;
}

}  // namespace mg2l
