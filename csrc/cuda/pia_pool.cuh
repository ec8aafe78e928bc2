// Kernels of `pia_pool` and `pia_pool_backward`: plain pointers, no torch header.
//
// A row is one head of one set: its T logits, their softmax and the weighted mean of T inputs. One
// block works on a row. Logits, and in the backward pass the weights and the gradients of the
// logits, lie in global memory, a D-th of the inputs; inputs are read once for the products with
// the query and once for the sums, the second time mostly from L2. Every sum is taken in an order
// of its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "portable.cuh"

namespace mg2l {

constexpr int kWarp = 32;
constexpr int kPoolWarps = 4;      // warps of a block that works on a row
constexpr int kPoolThreads = 256;  // threads of a block with an element each
constexpr int kQueryRows = 8;      // inputs that a block summing for the query works on at a time
constexpr int kQueryParts = 64;    // parts of the sets that the gradient of the query sums

template <typename scalar_t>
struct PoolArgs {
  int64_t outer, length, inner, width, heads;
  const scalar_t *x, *query;  // [outer, T, inner, D], [heads, D]
  const uint8_t* mask;        // [outer, T, inner] or null
  scalar_t *pooled, *lse;     // [outer, inner, heads, D] and without D
  scalar_t* weights;          // [outer, inner, heads, T]

  __device__ int64_t sets() const { return outer * inner; }

  // Where input t of a set lies, in units of D.
  __device__ int64_t at(int64_t set, int64_t t) const {
    return (set / inner * length + t) * inner + set % inner;
  }

  __device__ bool has(int64_t set, int64_t t) const {
    return mask == nullptr || mask[at(set, t)] != 0;
  }
};

template <typename scalar_t>
struct PoolBackwardArgs {
  PoolArgs<scalar_t> forward;     // `pooled` and `lse` are read, `weights` is scratch
  const scalar_t* grad;           // [outer, inner, heads, D]
  scalar_t* grad_logits;          // scratch, like the weights
  scalar_t* partial;              // scratch, [kQueryParts, heads, D]
  scalar_t *grad_x, *grad_query;  // like x and the query
};

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

// A row: logits and their log-sum-exp, a warp to an input; then weights; then the mean, a lane to
// every 32nd of D and a warp to every kPoolWarps-th input.
//
// Launch: grid.x = sets * heads, block (32, kPoolWarps). Writes every output.
template <typename scalar_t>
__global__ void pia_pool_kernel(PoolArgs<scalar_t> args) {
  __shared__ scalar_t tops[kPoolWarps], totals[kPoolWarps];
  __shared__ scalar_t sums[kPoolWarps][kWarp];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t row = blockIdx.x, set = row / args.heads;
  const scalar_t* query = args.query + row % args.heads * args.width;
  scalar_t* weights = args.weights + row * args.length;

  scalar_t top = -INFINITY, total = 0;
  for (int64_t t = warp; t < args.length; t += kPoolWarps) {
    scalar_t logit = -INFINITY;
    if (args.has(set, t)) {
      logit = warp_dot(args.x + args.at(set, t) * args.width, query, args.width);
      if (logit - logit != 0) logit = NAN;  // one that is not finite: then all of the set is NaN
      const scalar_t before = top;
      top = logit > top ? logit : top;
      total = total * exp(before - top) + exp(logit - top);
    }
    if (lane == 0) weights[t] = logit;
  }
  if (lane == 0) {
    tops[warp] = top;
    totals[warp] = total;
  }
  __syncthreads();
  top = tops[0];
  for (int other = 1; other < kPoolWarps; ++other) top = tops[other] > top ? tops[other] : top;
  total = 0;
  for (int other = 0; other < kPoolWarps; ++other) {
    if (totals[other] != 0) total += totals[other] * exp(tops[other] - top);
  }
  const scalar_t lse = total == 0 ? scalar_t(-INFINITY) : top + log(total);
  if (lane == 0 && warp == 0) args.lse[row] = lse;
  for (int64_t t = warp * kWarp + lane; t < args.length; t += kPoolWarps * kWarp) {
    const scalar_t logit = weights[t];
    weights[t] = logit == scalar_t(-INFINITY) ? scalar_t(0) : exp(logit - lse);
  }
  __syncthreads();
  for (int64_t first = 0; first < args.width; first += kWarp) {
    const int64_t d = first + lane;
    scalar_t sum = 0;
    for (int64_t t = warp; t < args.length; t += kPoolWarps) {
      const scalar_t weight = weights[t];
      if (d < args.width && weight != 0) {
        sum += weight * args.x[args.at(set, t) * args.width + d];
      }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && d < args.width) {
      for (int other = 1; other < kPoolWarps; ++other) sum += sums[other][lane];
      args.pooled[row * args.width + d] = sum;
    }
    __syncthreads();
  }
}

// A row: its weights, and the gradients of its logits, w_t (grad . x_t - grad . pooled).
//
// Launch: grid.x = sets * heads, block (32, kPoolWarps). Writes weights and grad_logits.
template <typename scalar_t>
__global__ void pia_pool_backward_logits_kernel(PoolBackwardArgs<scalar_t> args) {
  const PoolArgs<scalar_t>& a = args.forward;
  const int64_t row = blockIdx.x, set = row / a.heads;
  const scalar_t* query = a.query + row % a.heads * a.width;
  const scalar_t* grad = args.grad + row * a.width;
  const scalar_t along = warp_dot(grad, a.pooled + row * a.width, a.width);
  const scalar_t lse = a.lse[row];
  for (int64_t t = threadIdx.y; t < a.length; t += kPoolWarps) {
    scalar_t weight = 0, to_logit = 0;
    if (a.has(set, t)) {
      const scalar_t* x = a.x + a.at(set, t) * a.width;
      weight = exp(warp_dot(x, query, a.width) - lse);
      to_logit = weight * (warp_dot(x, grad, a.width) - along);
    }
    if (threadIdx.x == 0) {
      a.weights[row * a.length + t] = weight;
      args.grad_logits[row * a.length + t] = to_logit;
    }
  }
}

// An element of grad_x: the sum over heads of w_t grad + grad_logit_t q.
//
// Launch: grid.x * kPoolThreads >= elements of x. Writes grad_x.
template <typename scalar_t>
__global__ void pia_pool_backward_inputs_kernel(PoolBackwardArgs<scalar_t> args) {
  const PoolArgs<scalar_t>& a = args.forward;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (element >= a.sets() * a.length * a.width) return;
  const int64_t d = element % a.width, at = element / a.width;
  const int64_t t = at / a.inner % a.length;
  const int64_t set = at / a.inner / a.length * a.inner + at % a.inner;
  scalar_t sum = 0;
  for (int64_t head = 0; head < a.heads && a.has(set, t); ++head) {
    const int64_t row = set * a.heads + head;
    sum += a.weights[row * a.length + t] * args.grad[row * a.width + d] +
           args.grad_logits[row * a.length + t] * a.query[head * a.width + d];
  }
  args.grad_x[element] = sum;
}

// A part of the gradient of the query, sum over its sets and their inputs of grad_logit_t x_t, for
// 32 of D: a lane to an element, a warp to every kQueryRows-th input.
//
// Launch: grid (ceil(D / 32), heads, kQueryParts), block (32, kQueryRows). Writes partial.
template <typename scalar_t>
__global__ void pia_pool_backward_query_kernel(PoolBackwardArgs<scalar_t> args) {
  __shared__ scalar_t sums[kQueryRows][kWarp];
  const PoolArgs<scalar_t>& a = args.forward;
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + lane, head = blockIdx.y;
  const int64_t part = blockIdx.z;
  const int64_t begin = part * a.sets() / kQueryParts, end = (part + 1) * a.sets() / kQueryParts;
  scalar_t sum = 0;
  if (d < a.width) {
    for (int64_t set = begin; set < end; ++set) {
      const scalar_t* to_logits = args.grad_logits + (set * a.heads + head) * a.length;
      for (int64_t t = warp; t < a.length; t += kQueryRows) {
        const scalar_t to_logit = to_logits[t];
        if (to_logit != 0) sum += to_logit * a.x[a.at(set, t) * a.width + d];
      }
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && d < a.width) {
    for (int other = 1; other < kQueryRows; ++other) sum += sums[other][lane];
    args.partial[(part * a.heads + head) * a.width + d] = sum;
  }
}

// The parts of the query's gradient, added in order.
//
// Launch: grid.x * kPoolThreads >= heads * D. Writes grad_query.
template <typename scalar_t>
__global__ void pia_pool_backward_combine_kernel(PoolBackwardArgs<scalar_t> args) {
  const int64_t size = args.forward.heads * args.forward.width;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (element >= size) return;
  scalar_t sum = 0;
  for (int part = 0; part < kQueryParts; ++part) sum += args.partial[part * size + element];
  args.grad_query[element] = sum;
}

}  // namespace mg2l
