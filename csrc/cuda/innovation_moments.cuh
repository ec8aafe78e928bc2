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

// Where transitions of a chunk lie, of rows times agents; -1 where a place is no row.
struct InnovationChunk {
  int64_t at[kInnovationThreads], before[kInnovationThreads];
  bool follows[kInnovationThreads];
};

// Looks up transitions from `first` on. Begins and ends with a barrier.
template <typename scalar_t>
__device__ void look_up(const InnovationArgs<scalar_t>& args, int64_t context, int64_t agent,
                        int64_t first, InnovationChunk& chunk) {
  __syncthreads();
  const int64_t t = first + threadIdx.x;
  if (t < args.steps) {
    const int64_t i = context * args.steps + t;
    int64_t now = args.places == nullptr ? i : args.places[i];
    int64_t before = -1;
    if (t > 0) before = args.places == nullptr ? i - 1 : args.places[i - 1];
    now = now >= 0 && now < args.rows ? now * args.agents + agent : -1;
    before = before >= 0 && before < args.rows ? before * args.agents + agent : -1;
    bool follows = now >= 0 && before >= 0;
    const scalar_t* began = args.transitions + now * args.features;
    const scalar_t* ended = args.transitions + (before + 1) * args.features - args.observation;
    for (int64_t o = 0; follows && o < args.observation; ++o) follows = began[o] == ended[o];
    chunk.at[threadIdx.x] = now;
    chunk.before[threadIdx.x] = before;
    chunk.follows[threadIdx.x] = follows;
  }
  __syncthreads();
}

// An innovation's number; NaN of what is no row, so that it is not hidden.
template <typename scalar_t>
__device__ double innovation(const InnovationArgs<scalar_t>& args, const InnovationChunk& chunk,
                             int t, int64_t column, double rho) {
  if (chunk.at[t] < 0) return NAN;
  const double x = static_cast<double>(args.series[chunk.at[t] * args.width + column]);
  if (!chunk.follows[t]) return x;
  return x - rho * static_cast<double>(args.series[chunk.before[t] * args.width + column]);
}

// Launch: grid.x = contexts * agents, block kInnovationThreads. Writes moments.
template <typename scalar_t>
__global__ void innovation_moments_kernel(InnovationArgs<scalar_t> args) {
  __shared__ InnovationChunk chunk;
  const int64_t context = blockIdx.x / args.agents, agent = blockIdx.x % args.agents;
  const int64_t entries = args.width * args.width;
  const double rho = static_cast<double>(*args.correlation);
  for (int64_t start = 0; start < entries; start += kInnovationThreads) {
    const int64_t entry = start + threadIdx.x;
    double none = 0, following = 0;
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; entry < entries && t < count; ++t) {
        const double product = innovation(args, chunk, t, entry / args.width, rho) *
                               innovation(args, chunk, t, entry % args.width, rho);
        if (chunk.follows[t]) {
          following += product;
        } else {
          none += product;
        }
      }
    }
    if (entry >= entries) continue;
    const double steps = static_cast<double>(args.steps > 0 ? args.steps : 1);
    double* to = args.moments + (context * 2 * args.agents + agent) * entries + entry;
    to[0] = none / steps;
    to[args.agents * entries] = following / steps;
  }
}

// Launch: grid.x * kInnovationThreads >= rows * agents * width. Writes grad_series.
template <typename scalar_t>
__global__ void innovation_moments_zero_kernel(InnovationArgs<scalar_t> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kInnovationThreads + threadIdx.x;
  if (i < args.rows * args.agents * args.width) args.grad_series[i] = 0;
}

// Launch: grid.x = contexts * agents, block kInnovationThreads. Adds to grad_series, and writes
// grad_correlation.
template <typename scalar_t>
__global__ void innovation_moments_backward_kernel(InnovationArgs<scalar_t> args) {
  __shared__ InnovationChunk chunk;
  __shared__ double along[kInnovationThreads];
  const int64_t context = blockIdx.x / args.agents, agent = blockIdx.x % args.agents;
  const int64_t width = args.width, entries = width * width;
  const double rho = static_cast<double>(*args.correlation);
  double sum = 0;
  for (int64_t start = 0; start < width; start += kInnovationThreads) {
    const int64_t column = start + threadIdx.x;
    for (int64_t first = 0; first < args.steps; first += kInnovationThreads) {
      look_up(args, context, agent, first, chunk);
      const int64_t left = args.steps - first;
      const int count = static_cast<int>(left < kInnovationThreads ? left : kInnovationThreads);
      for (int t = 0; column < width && t < count; ++t) {
        const int kind = chunk.follows[t] ? 1 : 0;
        const double* grad = args.grad + ((context * 2 + kind) * args.agents + agent) * entries;
        double slope = 0;
        for (int64_t i = 0; i < width; ++i) {
          slope += (grad[i * width + column] + grad[column * width + i]) *
                   innovation(args, chunk, t, i, rho);
        }
        slope /= static_cast<double>(args.steps);
        if (chunk.at[t] >= 0) args.grad_series[chunk.at[t] * width + column] += slope;
        if (kind == 1) {
          const int64_t before = chunk.before[t] * width + column;
          args.grad_series[before] -= rho * slope;
          sum -= slope * static_cast<double>(args.series[before]);
        }
      }
    }
  }
  along[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double total = 0;
  for (int thread = 0; thread < kInnovationThreads; ++thread) total += along[thread];
  args.grad_correlation[context * args.agents + agent] = total;
}

}  // namespace mg2l
