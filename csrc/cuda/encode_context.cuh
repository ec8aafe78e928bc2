// Kernels of `encode_context` and `encode_context_backward`: plain pointers, no torch header.
//
// A block works on tiles of up to 32 transitions of one agent in one context. A tile's features
// stay in shared memory from the gather to the pooling; weights come from global memory, where all
// blocks read the same few, mostly from L1. Products are made in squares of 4 x 4 per thread, in
// registers: 16 multiplications for two loads of four numbers. Every sum is taken in an order of
// its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "encode_context_layout.h"
#include "gelu.cuh"
#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kEncodeWarps = 4;
constexpr int kEncodeThreads = 32 * kEncodeWarps;

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

// The arguments, and where the launcher has laid everything out.
template <typename input_t, typename scalar_t>
struct EncodePlan : EncodeArgs<input_t, scalar_t> {
  int tile_rows;
  int first_inputs;                       // of the first layer, in shared memory
  int pooled;                             // running sums of the forward pass, in shared memory
  int64_t query;                          // in packed
  int64_t gradient_query, gradient_size;  // within a part's sums
  EncodeLayer layer[kMaxLayers];

  __device__ int64_t set_of(int64_t agent) const { return this->own_weights ? agent : 0; }
  __device__ const EncodeLayer& last() const { return layer[this->layers - 1]; }
  __device__ const scalar_t* query_of(int64_t set) const {
    return this->packed + query + set * padded(last().units);
  }
  __device__ int64_t tiles() const { return (this->transitions + tile_rows - 1) / tile_rows; }

  // Where a layer reads in shared memory.
  __device__ int reads(int l) const { return l == 0 ? first_inputs : layer[l - 1].features; }
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

// Copies a tile of an agent's transitions into shared memory, zeros where there are none. A row
// that an index points to outside the context becomes NaN, and so does everything computed from it.
template <typename input_t, typename scalar_t>
__device__ void gather_tile(const EncodePlan<input_t, scalar_t>& plan, scalar_t* shared,
                            int64_t context, int64_t agent, int64_t first, int64_t count) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = padded(plan.features);
  for (int64_t row = warp; row < plan.tile_rows; row += kEncodeWarps) {
    scalar_t* to = shared + plan.first_inputs + row * pitch(plan.features);
    int64_t from = -1;
    if (row < count) {
      const int64_t at = context * plan.transitions + first + row;
      from = plan.index == nullptr ? at : plan.index[at];
    }
    const bool exists = from >= 0 && from < plan.rows;
    const input_t* values = plan.context + (from * plan.agents + agent) * plan.features;
    for (int64_t i = lane; i < width; i += 32) {
      scalar_t value = 0;
      if (row < count && i < plan.features) {
        value = exists ? widen<scalar_t>(values[i]) : scalar_t(NAN);
      }
      to[i] = value;
    }
  }
}

// Hidden features of a layer, and with kSlopes the derivatives.
template <bool kSlopes, typename input_t, typename scalar_t>
__device__ void hidden_layer(const EncodePlan<input_t, scalar_t>& plan, int l, int64_t set,
                             scalar_t* shared) {
  const EncodeLayer& layer = plan.layer[l];
  const scalar_t* parameters = plan.packed + layer.packed + set * layer.packed_stride;
  const scalar_t* weight_t = parameters + layer.weight_t();
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int from_pitch = static_cast<int>(pitch(layer.inputs));
  const int to_pitch = static_cast<int>(pitch(layer.units));
  const int across = units / kQuad, squares = plan.tile_rows / kQuad * across;
  for (int square = threadIdx.x; square < squares; square += kEncodeThreads) {
    const int unit = square % across * kQuad, row = square / across * kQuad;
    const scalar_t* from = shared + plan.reads(l) + row * from_pitch;
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
        gelu(plan.tanh_gelu, sum[r].v[u], value.v[u], slope.v[u]);
      }
      const int at = (row + r) * to_pitch + unit;
      store_quad(shared + layer.features + at, value);
      if (kSlopes) store_quad(shared + layer.slopes + at, slope);
    }
  }
}

// Gathers a tile and computes its hidden features. Begins and ends with a barrier.
template <bool kSlopes, typename input_t, typename scalar_t>
__device__ void hidden_features(const EncodePlan<input_t, scalar_t>& plan, scalar_t* shared,
                                int64_t context, int64_t agent, int64_t first, int64_t count) {
  __syncthreads();
  gather_tile(plan, shared, context, agent, first, count);
  for (int l = 0; l < plan.layers; ++l) {
    __syncthreads();
    hidden_layer<kSlopes>(plan, l, plan.set_of(agent), shared);
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
__global__ void encode_context_kernel(EncodePlan<input_t, scalar_t> plan, int64_t splits,
                                      scalar_t* partial, input_t* weights) {
  __shared__ scalar_t logits[kMaxTileRows];
  __shared__ scalar_t exponentials[kMaxTileRows];
  scalar_t* shared = static_cast<scalar_t*>(dynamic_shared());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t pair = blockIdx.x / splits, split = blockIdx.x % splits;
  const int64_t context = pair / plan.agents, agent = pair % plan.agents;
  const EncodeLayer& last = plan.last();
  const int width = static_cast<int>(padded(last.units)),
            row_pitch = static_cast<int>(pitch(last.units));
  const scalar_t* query = plan.query_of(plan.set_of(agent));
  const scalar_t* features = shared + last.features;
  scalar_t* pooled = shared + plan.pooled;
  for (int h = threadIdx.x; h < width; h += kEncodeThreads) pooled[h] = 0;
  scalar_t running_max = -INFINITY, running_sum = 0;  // the same in every thread
  const int64_t begin = split * plan.tiles() / splits, end = (split + 1) * plan.tiles() / splits;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * plan.tile_rows, left = plan.transitions - first;
    const int count = static_cast<int>(left < plan.tile_rows ? left : plan.tile_rows);
    hidden_features<false>(plan, shared, context, agent, first, count);
    for (int row = warp; row < count; row += kEncodeWarps) {
      const scalar_t logit = encode_warp_dot(features + row * row_pitch, query, width);
      if (lane == 0) logits[row] = logit;
    }
    __syncthreads();
    scalar_t logit = lane < count ? logits[lane] : scalar_t(-INFINITY);
    if (lane < count && logit - logit != 0) logit = NAN;  // then all of the context is NaN
    const scalar_t previous_max = running_max;
    const scalar_t tile_max = encode_warp_max(logit);
    running_max = tile_max > running_max || tile_max != tile_max ? tile_max : running_max;
    const scalar_t shift = running_max == scalar_t(-INFINITY) ? scalar_t(0) : running_max;
    const scalar_t rescale = exp(previous_max - shift), exponential = exp(logit - shift);
    running_sum = running_sum * rescale + encode_warp_sum(exponential);
    if (warp == 0 && lane < count) {
      exponentials[lane] = exponential;
      if (weights != nullptr) narrow(logit, weights + pair * plan.transitions + first + lane);
    }
    __syncthreads();
    for (int h = threadIdx.x; h < width; h += kEncodeThreads) {
      scalar_t sum = pooled[h] * rescale;
      for (int row = 0; row < count; ++row) {
        sum += exponentials[row] * features[row * row_pitch + h];
      }
      pooled[h] = sum;
    }
  }
  scalar_t* to = partial + static_cast<int64_t>(blockIdx.x) * partial_width(last.units);
  for (int h = threadIdx.x; h < width; h += kEncodeThreads) to[h] = pooled[h];
  if (threadIdx.x == 0) {
    to[width] = running_max;
    to[width + 1] = running_sum;
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
  scalar_t largest = -INFINITY, total = 0;
  for (int64_t split = 0; split < splits; ++split) {
    const scalar_t other = parts[split * (width + 2) + width];
    largest = other > largest || other != other ? other : largest;
  }
  const scalar_t shift = largest == scalar_t(-INFINITY) ? scalar_t(0) : largest;
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

// Lays the parameters of all layers out as the kernels read them, in the precision of the sums. The
// query is a layer without inputs.
//
// Launch: grid (x, layers + 1), x * kEncodeThreads >= sets * packed_size(units, inputs) of each.
// Writes packed.
template <typename input_t, typename scalar_t>
__global__ void encode_context_pack_kernel(EncodePackArgs<input_t, scalar_t> args) {
  const int l = static_cast<int>(blockIdx.y);
  const int64_t units = args.units[l], inputs = args.inputs[l];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kEncodeThreads + threadIdx.x;
  const int64_t size = packed_size(units, inputs), set = at / size;
  if (set >= args.sets) return;
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
    if (unit < units) value = widen<scalar_t>(args.bias[l][set * units + unit]);
  } else if (unit < units && input < inputs) {
    value = widen<scalar_t>(args.weight[l][(set * units + unit) * inputs + input]);
  }
  args.packed[args.offset[l] + at] = value;
}

// Adds the parts of all gradients and lays them out as their parameters: a lane to a number, a warp
// to every kEncodeWarps-th part; then the warps' sums in order.
//
// Launch: grid (x, layers + 1), x * 32 >= sets * units * (inputs + 1) of each, block
// kEncodeThreads. Writes all gradients.
template <typename input_t, typename scalar_t>
__global__ void encode_context_unpack_kernel(EncodeUnpackArgs<input_t, scalar_t> args) {
  __shared__ scalar_t sums[kEncodeWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, l = static_cast<int>(blockIdx.y);
  const int64_t units = args.units[l], inputs = args.inputs[l];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const bool exists = at < args.sets * units * (inputs + 1);
  const int64_t input = at % (inputs + 1), unit = at / (inputs + 1) % units;
  const int64_t set = at / (inputs + 1) / units;
  const bool is_bias = input == inputs;
  if (exists) {
    const int64_t from = args.offset[l] + (is_bias ? padded(units) * padded(inputs) + unit
                                                   : unit * padded(inputs) + input);
    const scalar_t* parts = args.partial + set * args.parts * args.size + from;
    scalar_t sum = 0;
#pragma unroll 4
    for (int64_t part = warp; part < args.parts; part += kEncodeWarps) {
      sum += parts[part * args.size];
    }
    sums[warp][lane] = sum;
  }
  __syncthreads();
  if (!exists || warp > 0) return;
  scalar_t sum = sums[0][lane];
  for (int other = 1; other < kEncodeWarps; ++other) sum += sums[other][lane];
  if (is_bias) {
    narrow(sum, args.grad_bias[l] + set * units + unit);
  } else {
    narrow(sum, args.grad_weight[l] + (set * units + unit) * inputs + input);
  }
}

}  // namespace mg2l
