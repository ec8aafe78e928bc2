// Kernel of `encode_context_backward`: plain pointers, no torch header. As encode_context.cuh,
// whose tiles it computes again, with the derivatives of every layer beside its features.
#pragma once

#include <cstdint>

#include "encode_context.cuh"

namespace mg2l {

// Adds to a part's sums what a layer's gradients (where its slopes were) give to its weights and
// biases, a square of 4 x 4 weights or a bias to a thread.
template <typename input_t, typename scalar_t>
__device__ void add_layer_gradients(const EncodePlan<input_t, scalar_t>& plan, int l,
                                    const scalar_t* shared, scalar_t* sums) {
  const EncodeLayer& layer = plan.layer[l];
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int from_pitch = static_cast<int>(pitch(layer.inputs));
  const int grad_pitch = static_cast<int>(pitch(layer.units));
  const scalar_t *from = shared + plan.reads(l), *grad = shared + layer.slopes;
  scalar_t* to = sums + layer.gradient;
  const int across = inputs / kQuad, squares = units / kQuad * across;
  for (int square = threadIdx.x; square < squares; square += kEncodeThreads) {
    const int i = square % across * kQuad, unit = square / across * kQuad;
    Quad<scalar_t> sum[kQuad];
#pragma unroll
    for (int u = 0; u < kQuad; ++u) sum[u] = load_quad(to + (unit + u) * inputs + i);
    for (int row = 0; row < plan.tile_rows; ++row) {
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
    for (int row = 0; row < plan.tile_rows; ++row) sum += grad[row * grad_pitch + unit];
    to[unit] = sum;
  }
}

// The gradient of what a layer read: times the slopes of the layer before, in their place, or of
// the first layer into grad_context.
template <typename input_t, typename scalar_t>
__device__ void backward_layer(const EncodePlan<input_t, scalar_t>& plan, int l, int64_t context,
                               int64_t agent, int64_t first, int64_t count, scalar_t* shared,
                               input_t* grad_context) {
  const EncodeLayer& layer = plan.layer[l];
  const int64_t set = plan.set_of(agent);
  const scalar_t* weight = plan.packed + layer.packed + set * layer.packed_stride + layer.weight();
  const int inputs = static_cast<int>(padded(layer.inputs));
  const int units = static_cast<int>(padded(layer.units));
  const int grad_pitch = static_cast<int>(pitch(layer.units));
  const int across = inputs / kQuad, squares = plan.tile_rows / kQuad * across;
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
      const EncodeLayer& before = plan.layer[l - 1];
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
        const int64_t at = (context * plan.transitions + first + row + r) * plan.agents + agent;
        for (int k = 0; k < kQuad && i + k < plan.features; ++k) {
          narrow(sum[r].v[k], grad_context + at * plan.features + i + k);
        }
      }
    }
  }
}

// A part of the gradients: the tiles [part * n / parts, (part + 1) * n / parts) of a set of weights
// in order, their features computed again.
//
// Launch: grid (parts, sets), block kEncodeThreads, dynamic shared memory for a tile. Writes
// partial, and grad_context where it is wanted.
template <typename input_t, typename scalar_t>
__global__ void encode_context_backward_kernel(EncodePlan<input_t, scalar_t> plan,
                                               EncodeBackwardArgs<input_t, scalar_t> args) {
  __shared__ scalar_t weights[kMaxTileRows];      // pooling weights
  __shared__ scalar_t grad_logits[kMaxTileRows];  // gradients of the logits
  scalar_t* shared = static_cast<scalar_t*>(dynamic_shared());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t part = blockIdx.x, parts = gridDim.x, set = blockIdx.y;
  const EncodeLayer& last = plan.last();
  const int units = last.units, width = static_cast<int>(padded(units));
  const int row_pitch = static_cast<int>(pitch(units));
  const scalar_t* query = plan.query_of(set);
  const scalar_t* features = shared + last.features;
  scalar_t* slopes = shared + last.slopes;
  scalar_t* sums = args.partial + (set * parts + part) * plan.gradient_size;
  for (int64_t i = threadIdx.x; i < plan.gradient_size; i += kEncodeThreads) sums[i] = 0;
  const int64_t agents_of_set = plan.own_weights ? 1 : plan.agents;
  const int64_t per_pair = plan.tiles(), tiles = plan.contexts * agents_of_set * per_pair;
  const int64_t begin = part * tiles / parts, end = (part + 1) * tiles / parts;
  int64_t tile = begin % per_pair, agent = set + begin / per_pair % agents_of_set;
  int64_t context = begin / per_pair / agents_of_set;
  for (int64_t left = end - begin; left > 0; --left) {
    const int64_t pair = context * plan.agents + agent, first = tile * plan.tile_rows;
    const int64_t rest = plan.transitions - first;
    const int count = static_cast<int>(rest < plan.tile_rows ? rest : plan.tile_rows);
    hidden_features<true>(plan, shared, context, agent, first, count);
    const scalar_t* grad = args.grad_pooled + pair * units;
    const scalar_t delta = encode_warp_dot(grad, args.pooled + pair * units, units);
    for (int row = warp; row < plan.tile_rows; row += kEncodeWarps) {
      scalar_t weight = 0, grad_logit = 0;
      if (row < count) {
        const scalar_t* x = features + row * row_pitch;
        weight = exp(encode_warp_dot(x, query, units) - args.lse[pair]);
        grad_logit = weight * (encode_warp_dot(x, grad, units) - delta);
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
      for (int row = 0; row < plan.tile_rows; ++row) {
        const int at = row * row_pitch + h;
        sum += grad_logits[row] * features[at];
        slopes[at] *= weights[row] * g + grad_logits[row] * q;
      }
      sums[plan.gradient_query + h] += sum;
    }
    for (int l = plan.layers - 1; l >= 0; --l) {
      __syncthreads();
      add_layer_gradients(plan, l, shared, sums);
      if (l > 0 || args.grad_context != nullptr) {
        backward_layer(plan, l, context, agent, first, count, shared, args.grad_context);
      }
    }
    if (++tile < per_pair) continue;
    tile = 0;
    if (++agent < set + agents_of_set) continue;
    agent = set;
    ++context;
  }
}

}  // namespace mg2l
