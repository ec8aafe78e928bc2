// Kernels of `pia_pool` and `pia_pool_backward`: plain pointers, no torch header.
//
// A row is one head of one set: its T logits, their softmax and the weighted mean of T inputs. One
// block works on a row, or several on a part of its inputs each where rows are few and long.
// Logits, and in the backward pass the weights and the gradients of the logits, lie in global
// memory, a D-th of the inputs; inputs are read once for the products with the query and once for
// the sums, the second time mostly from L2. Every sum is taken in an order of its own: no atomics,
// the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "pia_pool_layout.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kWarp = 32;
constexpr int kPoolWarps = 4;      // warps of a block that works on a row
constexpr int kPoolThreads = 256;  // threads of a block with an element each
constexpr int kQueryRows = 8;      // inputs that a block summing for the query works on at a time

// Where input t of a set lies, in units of D.
template <typename scalar_t>
__device__ int64_t input_at(const PoolArgs<scalar_t>& in, int64_t set, int64_t t) {
  return (set / in.inner * in.length + t) * in.inner + set % in.inner;
}

template <typename scalar_t>
__device__ bool has_input(const PoolArgs<scalar_t>& in, int64_t set, int64_t t) {
  return in.mask == nullptr || in.mask[input_at(in, set, t)] != 0;
}

// The sum over a warp, in every lane.
template <typename scalar_t>
__device__ scalar_t warp_sum(scalar_t value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// a . b over D, by a warp; the result is in every lane.
template <typename scalar_t>
__device__ scalar_t warp_dot(const scalar_t* a, const scalar_t* b, int64_t width) {
  scalar_t sum = 0;
  for (int64_t d = threadIdx.x; d < width; d += kWarp) sum += a[d] * b[d];
  return warp_sum(sum);
}

// Part of a row: logits and their log-sum-exp, a warp to an input; then weights; then the mean, a
// lane to every 32nd of D and a warp to every kPoolWarps-th input. Where several blocks share a row
// (kSplit), each leaves a row of `partial`, and weights are relative to its largest logit.
//
// Launch: grid (sets * heads, splits), block (32, kPoolWarps). Writes every output, or partial and
// weights.
template <bool kSplit, typename scalar_t>
__global__ void pia_pool_kernel(PoolForwardArgs<scalar_t> args) {
  const PoolArgs<scalar_t>& in = args.in;
  __shared__ scalar_t warp_max[kPoolWarps], warp_exp_sum[kPoolWarps];
  __shared__ scalar_t sums[kPoolWarps][kWarp];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t row = blockIdx.x, set = row / in.heads, split = blockIdx.y, splits = gridDim.y;
  const int64_t begin = split * in.length / splits, end = (split + 1) * in.length / splits;
  const scalar_t* query = in.query + row % in.heads * in.width;
  scalar_t* weights = args.weights + row * in.length;

  scalar_t running_max = -INFINITY, running_sum = 0;
  for (int64_t t = begin + warp; t < end; t += kPoolWarps) {
    scalar_t logit = -INFINITY;
    if (has_input(in, set, t)) {
      logit = warp_dot(in.x + input_at(in, set, t) * in.width, query, in.width);
      if (logit - logit != 0) logit = NAN;  // one that is not finite: then all of the set is NaN
      const scalar_t previous_max = running_max;
      running_max = logit > running_max ? logit : running_max;
      running_sum = running_sum * exp(previous_max - running_max) + exp(logit - running_max);
    }
    if (lane == 0) weights[t] = logit;
  }
  if (lane == 0) {
    warp_max[warp] = running_max;
    warp_exp_sum[warp] = running_sum;
  }
  __syncthreads();
  running_max = warp_max[0];
  for (int other = 1; other < kPoolWarps; ++other) {
    running_max = warp_max[other] > running_max ? warp_max[other] : running_max;
  }
  running_sum = 0;
  for (int other = 0; other < kPoolWarps; ++other) {
    if (warp_exp_sum[other] != 0) {
      running_sum += warp_exp_sum[other] * exp(warp_max[other] - running_max);
    }
  }
  const scalar_t lse = running_sum == 0 ? scalar_t(-INFINITY) : running_max + log(running_sum);
  const scalar_t shift = kSplit ? running_max : lse;
  for (int64_t t = begin + warp * kWarp + lane; t < end; t += kPoolWarps * kWarp) {
    const scalar_t logit = weights[t];
    weights[t] = logit == scalar_t(-INFINITY) ? scalar_t(0) : exp(logit - shift);
  }
  scalar_t* pooled = kSplit ? args.partial + (row * splits + split) * (in.width + 2)
                            : args.pooled + row * in.width;
  if (lane == 0 && warp == 0) {
    if constexpr (kSplit) {
      pooled[in.width] = running_max;
      pooled[in.width + 1] = running_sum;
    } else {
      args.lse[row] = lse;
    }
  }
  __syncthreads();
  for (int64_t first = 0; first < in.width; first += kWarp) {
    const int64_t d = first + lane;
    scalar_t sum = 0;
    for (int64_t t = begin + warp; t < end; t += kPoolWarps) {
      const scalar_t weight = weights[t];
      if (d < in.width && weight != 0) {
        sum += weight * in.x[input_at(in, set, t) * in.width + d];
      }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && d < in.width) {
      for (int other = 1; other < kPoolWarps; ++other) sum += sums[other][lane];
      pooled[d] = sum;
    }
    __syncthreads();
  }
}

// Puts the splits of a row together: mean, log-sum-exp, and weights relative to it.
//
// Launch: grid.x = sets * heads, block kPoolThreads. Writes pooled and lse; weights in place.
template <typename scalar_t>
__global__ void pia_pool_finish_kernel(PoolForwardArgs<scalar_t> args, int64_t splits) {
  __shared__ scalar_t factors[kPoolSplitsMost];
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t row = blockIdx.x, width = in.width;
  const scalar_t* parts = args.partial + row * splits * (width + 2);
  scalar_t largest = -INFINITY, total = 0;
  for (int64_t split = 0; split < splits; ++split) {
    const scalar_t other = parts[split * (width + 2) + width];
    largest = other > largest ? other : largest;
  }
  for (int64_t split = 0; split < splits; ++split) {
    const scalar_t* part = parts + split * (width + 2) + width;
    if (part[1] != 0) total += part[1] * exp(part[0] - largest);
  }
  const scalar_t lse = total == 0 ? scalar_t(-INFINITY) : largest + log(total);
  if (threadIdx.x == 0) args.lse[row] = lse;
  if (static_cast<int64_t>(threadIdx.x) < splits) {
    const scalar_t* part = parts + threadIdx.x * (width + 2) + width;
    // A split that has no input has no largest logit; one that is not finite makes all NaN.
    factors[threadIdx.x] = part[1] == 0 && lse == lse ? scalar_t(0) : exp(part[0] - lse);
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < width; d += kPoolThreads) {
    scalar_t sum = 0;
    for (int64_t split = 0; split < splits; ++split) {
      sum += factors[split] * parts[split * (width + 2) + d];
    }
    args.pooled[row * width + d] = sum;
  }
  for (int64_t split = 0; split < splits; ++split) {
    const int64_t begin = split * in.length / splits, end = (split + 1) * in.length / splits;
    for (int64_t t = begin + threadIdx.x; t < end; t += kPoolThreads) {
      scalar_t& weight = args.weights[row * in.length + t];
      // Not 0 times NaN.
      weight = has_input(in, row / in.heads, t) ? weight * factors[split] : scalar_t(0);
    }
  }
}

// A row: its weights, and the gradients of its logits, w_t (grad . x_t - grad . pooled).
//
// Launch: grid (sets * heads, splits), block (32, kPoolWarps). Writes weights and grad_logits.
template <typename scalar_t>
__global__ void pia_pool_backward_logits_kernel(PoolBackwardArgs<scalar_t> args) {
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t row = blockIdx.x, set = row / in.heads;
  const scalar_t* query = in.query + row % in.heads * in.width;
  const scalar_t* grad = args.grad + row * in.width;
  const scalar_t delta = warp_dot(grad, args.pooled + row * in.width, in.width);
  const scalar_t lse = args.lse[row];
  const int64_t split = blockIdx.y, splits = gridDim.y;
  const int64_t begin = split * in.length / splits, end = (split + 1) * in.length / splits;
  for (int64_t t = begin + threadIdx.y; t < end; t += kPoolWarps) {
    scalar_t weight = 0, to_logit = 0;
    if (has_input(in, set, t)) {
      const scalar_t* x = in.x + input_at(in, set, t) * in.width;
      weight = exp(warp_dot(x, query, in.width) - lse);
      to_logit = weight * (warp_dot(x, grad, in.width) - delta);
    }
    if (threadIdx.x == 0) {
      args.weights[row * in.length + t] = weight;
      args.grad_logits[row * in.length + t] = to_logit;
    }
  }
}

// An element of grad_x: the sum over heads of w_t grad + grad_logit_t q.
//
// Launch: grid.x * kPoolThreads >= elements of x. Writes grad_x.
template <typename scalar_t>
__global__ void pia_pool_backward_inputs_kernel(PoolBackwardArgs<scalar_t> args) {
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (element >= in.outer * in.inner * in.length * in.width) return;
  const int64_t d = element % in.width, at = element / in.width;
  const int64_t t = at / in.inner % in.length;
  const int64_t set = at / in.inner / in.length * in.inner + at % in.inner;
  scalar_t sum = 0;
  for (int64_t head = 0; head < in.heads && has_input(in, set, t); ++head) {
    const int64_t row = set * in.heads + head;
    sum += args.weights[row * in.length + t] * args.grad[row * in.width + d] +
           args.grad_logits[row * in.length + t] * in.query[head * in.width + d];
  }
  args.grad_x[element] = sum;
}

// A part of the gradient of the query, sum over its inputs, of any set, of grad_logit_t x_t, for 32
// of D: a lane to an element, a warp to every kQueryRows-th input.
//
// Launch: grid (ceil(D / 32), heads, kQueryParts), block (32, kQueryRows). Writes partial.
template <typename scalar_t>
__global__ void pia_pool_backward_query_kernel(PoolBackwardArgs<scalar_t> args) {
  __shared__ scalar_t sums[kQueryRows][kWarp];
  const PoolArgs<scalar_t>& in = args.in;
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + lane, head = blockIdx.y;
  const int64_t part = blockIdx.z, inputs = in.outer * in.inner * in.length;
  const int64_t begin = part * inputs / kQueryParts, end = (part + 1) * inputs / kQueryParts;
  scalar_t sum = 0;
  if (d < in.width) {
    for (int64_t at = begin + warp; at < end; at += kQueryRows) {
      const int64_t set = at / in.length, t = at % in.length;
      const scalar_t to_logit = args.grad_logits[(set * in.heads + head) * in.length + t];
      if (to_logit != 0) sum += to_logit * in.x[input_at(in, set, t) * in.width + d];
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && d < in.width) {
    for (int other = 1; other < kQueryRows; ++other) sum += sums[other][lane];
    args.partial[(part * in.heads + head) * in.width + d] = sum;
  }
}

// The parts of the query's gradient, added in order.
//
// Launch: grid.x * kPoolThreads >= heads * D. Writes grad_query.
template <typename scalar_t>
__global__ void pia_pool_backward_combine_kernel(PoolBackwardArgs<scalar_t> args) {
  const int64_t size = args.in.heads * args.in.width;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (element >= size) return;
  scalar_t sum = 0;
  for (int part = 0; part < kQueryParts; ++part) sum += args.partial[part * size + element];
  args.grad_query[element] = sum;
}

}  // namespace mg2l
