// Kernels of `encode_context` and `encode_context_backward`: plain pointers, no torch header.
//
// A block works on tiles of up to 32 transitions of one agent in one context. A tile's features
// live in shared memory from the gather to the pooling; weights come from global memory, where all
// blocks read the same few, mostly from L1. Products are made in squares of 4 x 4 per thread, in
// registers: 16 multiplications for two loads of four numbers. Every sum is taken in an order of
// its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "encode_context_layout.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kEncodeWarps = 4;
constexpr int kEncodeThreads = 32 * kEncodeWarps;

// bfloat16 as it is stored; kernels compute in float.
struct Bf16 {
  uint16_t bits;
};

template <typename scalar_t>
__device__ scalar_t widen(scalar_t x) {
  return x;
}
template <typename scalar_t>
__device__ scalar_t widen(Bf16 x) {
  return __int_as_float(static_cast<int>(static_cast<unsigned>(x.bits) << 16));
}

// To the nearest, ties to even; NaN stays NaN.
__device__ inline void narrow(float x, Bf16* to) {
  const unsigned bits = static_cast<unsigned>(__float_as_int(x));
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
template <typename scalar_t>
__device__ void narrow(scalar_t x, scalar_t* to) {
  *to = x;
}

// Four numbers, loaded and stored 16 bytes at a time.
template <typename scalar_t>
struct alignas(16) Quad {
  scalar_t v[kQuad];
};

template <typename scalar_t>
__device__ Quad<scalar_t> load_quad(const scalar_t* from) {
  return *reinterpret_cast<const Quad<scalar_t>*>(from);
}
template <typename scalar_t>
__device__ void store_quad(scalar_t* to, const Quad<scalar_t>& quad) {
  *reinterpret_cast<Quad<scalar_t>*>(to) = quad;
}

// A hidden layer: widths, and where its parts begin.
struct EncodeLayer {
  int inputs, units;
  int features, slopes;           // in shared memory; slopes only in the backward pass
  int64_t packed, packed_stride;  // of set 0, and from one set of weights to the next
  int64_t gradient;               // within a part's sums

  __device__ int64_t weight_t() const { return 0; }
  __device__ int64_t weight() const { return padded(inputs) * padded(units); }
  __device__ int64_t bias() const { return 2 * weight(); }
};

template <typename input_t, typename scalar_t>
struct EncodeArgs {
  int64_t contexts, transitions, agents, features, rows;
  bool own_weights, tanh_gelu;
  int layers, tile_rows;
  int inputs;                             // of the first layer, in shared memory
  int pooled;                             // running sums of the forward pass, in shared memory
  int64_t query;                          // in packed
  int64_t gradient_query, gradient_size;  // within a part's sums
  const input_t* context;                 // [R, A, F]
  const int64_t* index;                   // [B, T] or null
  const scalar_t* packed;
  EncodeLayer layer[kMaxLayers];

  __device__ const EncodeLayer& last() const { return layer[layers - 1]; }
  __device__ const scalar_t* query_of(int64_t set) const {
    return packed + query + set * padded(last().units);
  }
  __device__ int64_t tiles() const { return (transitions + tile_rows - 1) / tile_rows; }

  // Where a layer reads in shared memory.
  __device__ int reads(int l) const { return l == 0 ? inputs : layer[l - 1].features; }
};

template <typename scalar_t>
__device__ scalar_t encode_warp_sum(scalar_t value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

template <typename scalar_t>
__device__ scalar_t encode_warp_max(scalar_t value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const scalar_t other = __shfl_xor_sync(0xffffffffu, value, lanes);
    value = other > value || other != other ? other : value;  // NaN is not hidden
  }
  return value;
}

// a . b over `width`, by a warp; the result is in every lane.
template <typename scalar_t>
__device__ scalar_t encode_warp_dot(const scalar_t* a, const scalar_t* b, int64_t width) {
  scalar_t sum = 0;
  for (int64_t d = threadIdx.x % 32; d < width; d += 32) sum += a[d] * b[d];
  return encode_warp_sum(sum);
}

// GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415) and its derivative.
template <typename scalar_t>
__device__ void gelu(bool tanh_gelu, scalar_t x, scalar_t& value, scalar_t& slope) {
  if (tanh_gelu) {
    constexpr scalar_t kScale = scalar_t(0.79788456080286536), kCubic = scalar_t(0.044715);
    const scalar_t square = x * x;
    const scalar_t u = x * kScale * (square * kCubic + scalar_t(1));
    const scalar_t share = scalar_t(0.5) * (scalar_t(1) + scalar_t(tanh(u)));
    value = x * share;
    slope = share + scalar_t(2) * value * (scalar_t(1) - share) * kScale *
                        (square * (scalar_t(3) * kCubic) + scalar_t(1));
  } else {
    const scalar_t share =
        scalar_t(0.5) * (scalar_t(1) + scalar_t(erf(x * scalar_t(0.70710678118654752))));
    value = x * share;
    slope = share + x * scalar_t(exp(scalar_t(-0.5) * x * x)) * scalar_t(0.39894228040143268);
  }
}

// Copies a tile of an agent's transitions into shared memory, zeros where there are none. A row
// that the index seeks where none is becomes NaN, and with it everything made of it.
template <typename input_t, typename scalar_t>
__device__ void gather_tile(const EncodeArgs<input_t, scalar_t>& args, scalar_t* shared,
                            int64_t context, int64_t agent, int64_t first, int64_t count) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = padded(args.features);
  for (int64_t row = warp; row < args.tile_rows; row += kEncodeWarps) {
    scalar_t* to = shared + args.inputs + row * pitch(args.features);
    int64_t from = -1;
    if (row < count) {
      const int64_t at = context * args.transitions + first + row;
      from = args.index == nullptr ? at : args.index[at];
    }
    const bool exists = from >= 0 && from < args.rows;
    const input_t* values = args.context + (from * args.agents + agent) * args.features;
    for (int64_t i = lane; i < width; i += 32) {
      scalar_t value = 0;
      if (row < count && i < args.features) {
        value = exists ? widen<scalar_t>(values[i]) : scalar_t(NAN);
      }
      to[i] = value;
    }
  }
}

// Hidden features of a layer, and with kSlopes the derivatives.
template <bool kSlopes, typename input_t, typename scalar_t>
__device__ void hidden_layer(const EncodeArgs<input_t, scalar_t>& args, int l, int64_t set,
                             scalar_t* shared) {
  const EncodeLayer& layer = args.layer[l];
  const scalar_t* parameters = args.packed + layer.packed + set * layer.packed_stride;
  const scalar_t* weight_t = parameters + layer.weight_t();
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int from_pitch = static_cast<int>(pitch(layer.inputs));
  const int to_pitch = static_cast<int>(pitch(layer.units));
  const int across = units / kQuad, squares = args.tile_rows / kQuad * across;
  for (int square = threadIdx.x; square < squares; square += kEncodeThreads) {
    const int unit = square % across * kQuad, row = square / across * kQuad;
    const scalar_t* from = shared + args.reads(l) + row * from_pitch;
    const Quad<scalar_t> bias = load_quad(parameters + layer.bias() + unit);
    Quad<scalar_t> sum[kQuad] = {bias, bias, bias, bias};
    for (int i = 0; i < inputs; i += kQuad) {
      Quad<scalar_t> x[kQuad];
#pragma unroll
      for (int r = 0; r < kQuad; ++r) x[r] = load_quad(from + r * from_pitch + i);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const Quad<scalar_t> w = load_quad(weight_t + (i + k) * units + unit);
#pragma unroll
        for (int r = 0; r < kQuad; ++r) {
#pragma unroll
          for (int u = 0; u < kQuad; ++u) sum[r].v[u] += x[r].v[k] * w.v[u];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kQuad; ++r) {
      Quad<scalar_t> value, slope;
#pragma unroll
      for (int u = 0; u < kQuad; ++u) {
        gelu(args.tanh_gelu, sum[r].v[u], value.v[u], slope.v[u]);
      }
      const int at = (row + r) * to_pitch + unit;
      store_quad(shared + layer.features + at, value);
      if (kSlopes) store_quad(shared + layer.slopes + at, slope);
    }
  }
}

// Gathers a tile and computes its hidden features. Begins and ends with a barrier.
template <bool kSlopes, typename input_t, typename scalar_t>
__device__ void hidden_features(const EncodeArgs<input_t, scalar_t>& args, scalar_t* shared,
                                int64_t context, int64_t agent, int64_t first, int64_t count) {
  __syncthreads();
  gather_tile(args, shared, context, agent, first, count);
  for (int l = 0; l < args.layers; ++l) {
    __syncthreads();
    hidden_layer<kSlopes>(args, l, args.own_weights ? agent : 0, shared);
  }
  __syncthreads();
}

// Part of a context: its tiles' hidden features, pooled with an online softmax. What is left is a
// row of `partial`: the sums [padded H], the largest logit, the sum of exponentials; and the logits
// in place of the weights.
//
// Launch: grid.x = contexts * agents * splits, block kEncodeThreads, dynamic shared memory for a
// tile and the sums. Writes partial and weights.
template <typename input_t, typename scalar_t>
__global__ void encode_context_kernel(EncodeArgs<input_t, scalar_t> args, int64_t splits,
                                      scalar_t* partial, input_t* weights) {
  __shared__ scalar_t logits[kMaxTileRows];
  __shared__ scalar_t exponentials[kMaxTileRows];
  scalar_t* shared = static_cast<scalar_t*>(dynamic_shared());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t pair = blockIdx.x / splits, split = blockIdx.x % splits;
  const int64_t context = pair / args.agents, agent = pair % args.agents;
  const EncodeLayer& last = args.last();
  const int width = static_cast<int>(padded(last.units)),
            row_pitch = static_cast<int>(pitch(last.units));
  const scalar_t* query = args.query_of(args.own_weights ? agent : 0);
  const scalar_t* features = shared + last.features;
  scalar_t* pooled = shared + args.pooled;
  for (int h = threadIdx.x; h < width; h += kEncodeThreads) pooled[h] = 0;
  scalar_t most = -INFINITY, total = 0;  // the same in every thread
  const int64_t begin = split * args.tiles() / splits, end = (split + 1) * args.tiles() / splits;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * args.tile_rows, left = args.transitions - first;
    const int count = static_cast<int>(left < args.tile_rows ? left : args.tile_rows);
    hidden_features<false>(args, shared, context, agent, first, count);
    for (int row = warp; row < count; row += kEncodeWarps) {
      const scalar_t logit = encode_warp_dot(features + row * row_pitch, query, width);
      if (lane == 0) logits[row] = logit;
    }
    __syncthreads();
    scalar_t logit = lane < count ? logits[lane] : scalar_t(-INFINITY);
    if (lane < count && logit - logit != 0) logit = NAN;  // then all of the context is NaN
    const scalar_t before = most;
    const scalar_t tile_most = encode_warp_max(logit);
    most = tile_most > most || tile_most != tile_most ? tile_most : most;
    const scalar_t shift = most == scalar_t(-INFINITY) ? scalar_t(0) : most;
    const scalar_t keep = exp(before - shift), exponential = exp(logit - shift);
    total = total * keep + encode_warp_sum(exponential);
    if (warp == 0 && lane < count) {
      exponentials[lane] = exponential;
      if (weights != nullptr) narrow(logit, weights + pair * args.transitions + first + lane);
    }
    __syncthreads();
    for (int h = threadIdx.x; h < width; h += kEncodeThreads) {
      scalar_t sum = pooled[h] * keep;
      for (int row = 0; row < count; ++row) {
        sum += exponentials[row] * features[row * row_pitch + h];
      }
      pooled[h] = sum;
    }
  }
  scalar_t* to = partial + static_cast<int64_t>(blockIdx.x) * partial_width(last.units);
  for (int h = threadIdx.x; h < width; h += kEncodeThreads) to[h] = pooled[h];
  if (threadIdx.x == 0) {
    to[width] = most;
    to[width + 1] = total;
  }
}

// Puts the parts of a context together: pooled features, log-sum-exp, and weights from logits.
//
// Launch: grid.x = contexts * agents, block kEncodeThreads. Writes every result.
template <typename input_t, typename scalar_t>
__global__ void encode_context_finish_kernel(int64_t units, int64_t transitions, int64_t splits,
                                             const scalar_t* partial, scalar_t* pooled,
                                             scalar_t* lse, input_t* weights) {
  const int64_t pair = blockIdx.x, width = padded(units);
  const scalar_t* parts = partial + pair * splits * (width + 2);
  scalar_t most = -INFINITY, total = 0;
  for (int64_t split = 0; split < splits; ++split) {
    const scalar_t other = parts[split * (width + 2) + width];
    most = other > most || other != other ? other : most;
  }
  const scalar_t shift = most == scalar_t(-INFINITY) ? scalar_t(0) : most;
  for (int64_t split = 0; split < splits; ++split) {
    const scalar_t* part = parts + split * (width + 2);
    total += part[width + 1] * scalar_t(exp(part[width] - shift));
  }
  for (int64_t h = threadIdx.x; h < units; h += kEncodeThreads) {
    scalar_t sum = 0;
    for (int64_t split = 0; split < splits; ++split) {
      const scalar_t* part = parts + split * (width + 2);
      sum += part[h] * scalar_t(exp(part[width] - shift));
    }
    pooled[pair * units + h] = sum / total;
  }
  const scalar_t sum = shift + scalar_t(log(total));
  if (threadIdx.x == 0) lse[pair] = sum;
  if (weights == nullptr) return;
  for (int64_t t = threadIdx.x; t < transitions; t += kEncodeThreads) {
    input_t* weight = weights + pair * transitions + t;
    narrow(scalar_t(exp(widen<scalar_t>(*weight) - sum)), weight);
  }
}

// Adds to a part's sums what a layer's gradients (where its slopes were) give to its weights and
// biases, a square of 4 x 4 weights or a bias to a thread.
template <typename input_t, typename scalar_t>
__device__ void add_layer_gradients(const EncodeArgs<input_t, scalar_t>& args, int l,
                                    const scalar_t* shared, scalar_t* sums) {
  const EncodeLayer& layer = args.layer[l];
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int from_pitch = static_cast<int>(pitch(layer.inputs));
  const int grad_pitch = static_cast<int>(pitch(layer.units));
  const scalar_t *from = shared + args.reads(l), *grad = shared + layer.slopes;
  scalar_t* to = sums + layer.gradient;
  const int across = inputs / kQuad, squares = units / kQuad * across;
  for (int square = threadIdx.x; square < squares; square += kEncodeThreads) {
    const int i = square % across * kQuad, unit = square / across * kQuad;
    Quad<scalar_t> sum[kQuad];
#pragma unroll
    for (int u = 0; u < kQuad; ++u) sum[u] = load_quad(to + (unit + u) * inputs + i);
    for (int row = 0; row < args.tile_rows; ++row) {
      const Quad<scalar_t> g = load_quad(grad + row * grad_pitch + unit);
      const Quad<scalar_t> x = load_quad(from + row * from_pitch + i);
#pragma unroll
      for (int u = 0; u < kQuad; ++u) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) sum[u].v[k] += g.v[u] * x.v[k];
      }
    }
#pragma unroll
    for (int u = 0; u < kQuad; ++u) store_quad(to + (unit + u) * inputs + i, sum[u]);
  }
  to += static_cast<int64_t>(units) * inputs;
  for (int unit = threadIdx.x; unit < units; unit += kEncodeThreads) {
    scalar_t sum = to[unit];
    for (int row = 0; row < args.tile_rows; ++row) sum += grad[row * grad_pitch + unit];
    to[unit] = sum;
  }
}

// The gradient of what a layer read: times the slopes of the layer before, in their place, or of
// the first layer into grad_context.
template <typename input_t, typename scalar_t>
__device__ void backward_layer(const EncodeArgs<input_t, scalar_t>& args, int l, int64_t context,
                               int64_t agent, int64_t first, int64_t count, scalar_t* shared,
                               input_t* grad_context) {
  const EncodeLayer& layer = args.layer[l];
  const int64_t set = args.own_weights ? agent : 0;
  const scalar_t* weight = args.packed + layer.packed + set * layer.packed_stride + layer.weight();
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int grad_pitch = static_cast<int>(pitch(layer.units));
  const int across = inputs / kQuad, squares = args.tile_rows / kQuad * across;
  for (int square = threadIdx.x; square < squares; square += kEncodeThreads) {
    const int i = square % across * kQuad, row = square / across * kQuad;
    const scalar_t* grad = shared + layer.slopes + row * grad_pitch;
    Quad<scalar_t> sum[kQuad] = {};
    for (int unit = 0; unit < units; unit += kQuad) {
      Quad<scalar_t> g[kQuad];
#pragma unroll
      for (int r = 0; r < kQuad; ++r) g[r] = load_quad(grad + r * grad_pitch + unit);
#pragma unroll
      for (int u = 0; u < kQuad; ++u) {
        const Quad<scalar_t> w = load_quad(weight + (unit + u) * inputs + i);
#pragma unroll
        for (int r = 0; r < kQuad; ++r) {
#pragma unroll
          for (int k = 0; k < kQuad; ++k) sum[r].v[k] += g[r].v[u] * w.v[k];
        }
      }
    }
    if (l > 0) {
      const EncodeLayer& before = args.layer[l - 1];
      const int slope_pitch = static_cast<int>(pitch(before.units));
#pragma unroll
      for (int r = 0; r < kQuad; ++r) {
        scalar_t* to = shared + before.slopes + (row + r) * slope_pitch + i;
        Quad<scalar_t> slope = load_quad(to);
#pragma unroll
        for (int k = 0; k < kQuad; ++k) slope.v[k] *= sum[r].v[k];
        store_quad(to, slope);
      }
    } else {
      for (int r = 0; r < kQuad && row + r < count; ++r) {
        const int64_t at = (context * args.transitions + first + row + r) * args.agents + agent;
        for (int k = 0; k < kQuad && i + k < args.features; ++k) {
          narrow(sum[r].v[k], grad_context + at * args.features + i + k);
        }
      }
    }
  }
}

template <typename input_t, typename scalar_t>
struct EncodeBackwardArgs {
  EncodeArgs<input_t, scalar_t> forward;
  const scalar_t *grad_pooled, *pooled, *lse;  // [B, A, H], [B, A, H], [B, A]
  scalar_t* partial;                           // [sets, parts, gradient_size]
  input_t* grad_context;                       // [B, T, A, F] or null
};

// A part of the gradients: the tiles [part * n / parts, (part + 1) * n / parts) of a set of weights
// in order, their features made anew.
//
// Launch: grid (parts, sets), block kEncodeThreads, dynamic shared memory for a tile. Writes
// partial, and grad_context where it is wanted.
template <typename input_t, typename scalar_t>
__global__ void encode_context_backward_kernel(EncodeBackwardArgs<input_t, scalar_t> args) {
  __shared__ scalar_t weights[kMaxTileRows];      // pooling weights
  __shared__ scalar_t grad_logits[kMaxTileRows];  // gradients of the logits
  const EncodeArgs<input_t, scalar_t>& a = args.forward;
  scalar_t* shared = static_cast<scalar_t*>(dynamic_shared());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t part = blockIdx.x, parts = gridDim.x, set = blockIdx.y;
  const EncodeLayer& last = a.last();
  const int units = last.units, width = static_cast<int>(padded(units));
  const int row_pitch = static_cast<int>(pitch(units));
  const scalar_t* query = a.query_of(set);
  const scalar_t* features = shared + last.features;
  scalar_t* slopes = shared + last.slopes;
  scalar_t* sums = args.partial + (set * parts + part) * a.gradient_size;
  for (int64_t i = threadIdx.x; i < a.gradient_size; i += kEncodeThreads) sums[i] = 0;
  const int64_t agents_of_set = a.own_weights ? 1 : a.agents;
  const int64_t per_pair = a.tiles(), tiles = a.contexts * agents_of_set * per_pair;
  const int64_t begin = part * tiles / parts, end = (part + 1) * tiles / parts;
  int64_t tile = begin % per_pair, agent = set + begin / per_pair % agents_of_set;
  int64_t context = begin / per_pair / agents_of_set;
  for (int64_t left = end - begin; left > 0; --left) {
    const int64_t pair = context * a.agents + agent, first = tile * a.tile_rows;
    const int64_t rest = a.transitions - first;
    const int count = static_cast<int>(rest < a.tile_rows ? rest : a.tile_rows);
    hidden_features<true>(a, shared, context, agent, first, count);
    const scalar_t* grad = args.grad_pooled + pair * units;
    const scalar_t along = encode_warp_dot(grad, args.pooled + pair * units, units);
    for (int row = warp; row < a.tile_rows; row += kEncodeWarps) {
      scalar_t weight = 0, grad_logit = 0;
      if (row < count) {
        const scalar_t* x = features + row * row_pitch;
        weight = exp(encode_warp_dot(x, query, units) - args.lse[pair]);
        grad_logit = weight * (encode_warp_dot(x, grad, units) - along);
      }
      if (lane == 0) {
        weights[row] = weight;
        grad_logits[row] = grad_logit;
      }
    }
    __syncthreads();
    for (int h = threadIdx.x; h < width; h += kEncodeThreads) {
      const scalar_t g = h < units ? grad[h] : scalar_t(0), q = query[h];
      scalar_t sum = 0;
      for (int row = 0; row < a.tile_rows; ++row) {
        const int at = row * row_pitch + h;
        sum += grad_logits[row] * features[at];
        slopes[at] *= weights[row] * g + grad_logits[row] * q;
      }
      sums[a.gradient_query + h] += sum;
    }
    for (int l = a.layers - 1; l >= 0; --l) {
      __syncthreads();
      add_layer_gradients(a, l, shared, sums);
      if (l > 0 || args.grad_context != nullptr) {
        backward_layer(a, l, context, agent, first, count, shared, args.grad_context);
      }
    }
    if (++tile < per_pair) continue;
    tile = 0;
    if (++agent < set + agents_of_set) continue;
    agent = set;
    ++context;
  }
}

// Lays the parameters of a layer out as the kernels read them, in the precision of the sums. The
// query is a layer without inputs.
//
// Launch: grid.x * kEncodeThreads >= sets * packed_size(units, inputs). Writes packed.
template <typename input_t, typename scalar_t>
__global__ void encode_context_pack_kernel(int64_t sets, int64_t units, int64_t inputs,
                                           const input_t* weight, const input_t* bias,
                                           scalar_t* packed) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kEncodeThreads + threadIdx.x;
  const int64_t size = packed_size(units, inputs), set = at / size;
  if (set >= sets) return;
  const int64_t weights = padded(units) * padded(inputs), within = at % size;
  int64_t unit, input = 0;
  if (within < weights) {
    unit = within % padded(units);
    input = within / padded(units);
  } else if (within < 2 * weights) {
    unit = (within - weights) / padded(inputs);
    input = (within - weights) % padded(inputs);
  } else {
    unit = within - 2 * weights;
  }
  scalar_t value = 0;
  if (within >= 2 * weights) {
    if (unit < units) value = widen<scalar_t>(bias[set * units + unit]);
  } else if (unit < units && input < inputs) {
    value = widen<scalar_t>(weight[(set * units + unit) * inputs + input]);
  }
  packed[at] = value;
}

// Adds the parts of a layer's gradients in order and lays them out as its parameters.
//
// Launch: grid.x * kEncodeThreads >= sets * units * (inputs + 1). Writes both gradients.
template <typename input_t, typename scalar_t>
__global__ void encode_context_unpack_kernel(int64_t parts, int64_t sets, int64_t units,
                                             int64_t inputs, int64_t size, int64_t offset,
                                             const scalar_t* partial, input_t* grad_weight,
                                             input_t* grad_bias) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kEncodeThreads + threadIdx.x;
  if (at >= sets * units * (inputs + 1)) return;
  const int64_t input = at % (inputs + 1), unit = at / (inputs + 1) % units;
  const int64_t set = at / (inputs + 1) / units;
  const bool is_bias = input == inputs;
  const int64_t from =
      offset + (is_bias ? padded(units) * padded(inputs) + unit : unit * padded(inputs) + input);
  scalar_t sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += partial[(set * parts + part) * size + from];
  if (is_bias) {
    narrow(sum, grad_bias + set * units + unit);
  } else {
    narrow(sum, grad_weight + (set * units + unit) * inputs + input);
  }
}

}  // namespace mg2l
