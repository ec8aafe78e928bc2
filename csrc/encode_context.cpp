// CPU kernels of `encode_context` and `encode_context_backward`.
#include "encode_context.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "bfloat16.h"
#include "gemm.h"

namespace mg2l {
namespace {

constexpr int64_t kTile = 48;   // transitions worked on together: their features stay in L1
constexpr int64_t kParts = 32;  // partial sums of the gradients, however many threads there are

static_assert(kTile % 12 == 0);

// A hidden layer as the kernels read it: in accumulation precision, hidden units along the vectors,
// padded with zeros to whole pairs of the widest vectors.
template <typename scalar_t>
struct Layer {
  int64_t inputs, units, padded;
  std::vector<scalar_t> weight_t;  // [sets, inputs, padded]
  std::vector<scalar_t> bias;      // [sets, padded]
  // [sets, units, padded units of the layer before]: what gradients flow back through; not for the
  // first layer.
  std::vector<scalar_t> weight;

  template <typename input_t>
  Layer(int64_t sets, int64_t inputs_, int64_t units_, const input_t* weight_, const input_t* bias_,
        bool with_weight)
      : inputs(inputs_), units(units_), padded(padded_width<scalar_t>(units_)) {
    const int64_t padded_inputs = padded_width<scalar_t>(inputs);
    weight_t.assign(sets * inputs * padded, 0);
    bias.assign(sets * padded, 0);
    if (with_weight) weight.assign(sets * units * padded_inputs, 0);
    for (int64_t set = 0; set < sets; ++set) {
      for (int64_t h = 0; h < units; ++h) {
        const input_t* row = weight_ + (set * units + h) * inputs;
        bias[set * padded + h] = widen<scalar_t>(bias_[set * units + h]);
        for (int64_t i = 0; i < inputs; ++i) {
          weight_t[(set * inputs + i) * padded + h] = widen<scalar_t>(row[i]);
          if (with_weight) {
            weight[(set * units + h) * padded_inputs + i] = widen<scalar_t>(row[i]);
          }
        }
      }
    }
  }
};

// All hidden layers and the query.
template <typename scalar_t>
struct Network {
  std::vector<Layer<scalar_t>> layers;
  std::vector<scalar_t> query;  // [sets, padded units of the last layer]

  template <typename input_t>
  Network(const EncodeSizes& sizes, const EncodeTensors& tensors, bool backward,
          input_t /*input*/) {
    const int64_t sets = sizes.weight_sets();
    int64_t inputs = sizes.features;
    for (size_t l = 0; l < sizes.units.size(); ++l) {
      layers.emplace_back(sets, inputs, sizes.units[l], data<input_t>(tensors.weights[l]),
                          data<input_t>(tensors.biases[l]), backward && l > 0);
      inputs = sizes.units[l];
    }
    const int64_t padded = last().padded;
    const input_t* given = data<input_t>(tensors.query);
    query.assign(sets * padded, 0);
    for (int64_t set = 0; set < sets; ++set) {
      for (int64_t h = 0; h < inputs; ++h) {
        query[set * padded + h] = widen<scalar_t>(given[set * inputs + h]);
      }
    }
  }

  const Layer<scalar_t>& last() const { return layers.back(); }
};

// Everything both kernels read. `index` is null when contexts follow each other in `context`.
template <typename input_t, typename scalar_t>
struct EncodeArrays {
  const EncodeSizes& sizes;
  const input_t* context;  // [R, A, F]
  const int64_t* index;    // [B, T]
  const Network<scalar_t>& network;
  bool tanh_gelu;

  const input_t* row(int64_t context_id, int64_t t, int64_t agent) const {
    const int64_t at = context_id * sizes.transitions + t;
    return context + ((index ? index[at] : at) * sizes.agents + agent) * sizes.features;
  }
};

// One thread's memory: a tile of transitions and what is known of their hidden units.
template <typename scalar_t>
struct Scratch {
  std::vector<scalar_t> inputs;                 // [kTile, F]
  std::vector<std::vector<scalar_t>> features;  // of every layer, [kTile, padded]: gelu
  std::vector<std::vector<scalar_t>> slopes;    // its derivative, then the gradient of its input
  std::vector<scalar_t> pooled;                 // [padded]
  alignas(64) scalar_t logits[kTile];           // query . features
  alignas(64) scalar_t alignment[kTile];        // grad . features

  Scratch(const Network<scalar_t>& network, bool backward)
      : inputs(kTile * network.layers[0].inputs, 0), pooled(network.last().padded) {
    for (const Layer<scalar_t>& layer : network.layers) {
      features.emplace_back(kTile * layer.padded);
      slopes.emplace_back(backward ? kTile * layer.padded : 0);
    }
  }
};

template <typename scalar_t>
MG2L_INLINE Rows<scalar_t> inputs_of(const Network<scalar_t>& network,
                                     const Scratch<scalar_t>& scratch, size_t l) {
  const int64_t width = network.layers[l].inputs;
  if (l == 0) return {scratch.inputs.data(), width, width};
  return {scratch.features[l - 1].data(), network.layers[l - 1].padded, width};
}

// Copies a tile of transitions into scratch; rows past `count` keep older numbers that nobody uses.
// Rows lie anywhere in memory: those of the tile after this one are asked for now, for all agents.
template <typename input_t, typename scalar_t>
MG2L_INLINE void gather(const EncodeArrays<input_t, scalar_t>& a, Scratch<scalar_t>& scratch,
                        int64_t context, int64_t agent, int64_t first, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(input_t);
  const int64_t width = a.sizes.agents * a.sizes.features;
  const int64_t rows = a.sizes.contexts * a.sizes.transitions;
  const int64_t ahead = context * a.sizes.transitions + first + kTile;
  if (agent == 0) {
    for (int64_t at = ahead; at < std::min(ahead + count, rows); ++at) {
      const input_t* row = a.context + (a.index ? a.index[at] : at) * width;
      for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i);
      __builtin_prefetch(row + width - 1);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    const input_t* row = a.row(context, first + t, agent);
    scalar_t* to = scratch.inputs.data() + t * a.sizes.features;
    for (int64_t f = 0; f < a.sizes.features; ++f) to[f] = widen<scalar_t>(row[f]);
  }
}

// Hidden features of one layer for a tile. Of the last layer also their product with the query;
// with kBackward the slopes, and of the last layer the product with `grad`.
template <int kBytes, bool kTanh, bool kBackward, bool kLast, typename scalar_t>
MG2L_INLINE void layer_features(const Network<scalar_t>& network, size_t l, int64_t set,
                                const scalar_t* query, const scalar_t* grad,
                                Scratch<scalar_t>& scratch, int64_t count) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  const Layer<scalar_t>& layer = network.layers[l];
  const int64_t padded = layer.padded;
  const Rows<scalar_t> inputs = inputs_of(network, scratch, l);
  const scalar_t* weight_t = layer.weight_t.data() + set * layer.inputs * padded;
  const scalar_t* bias = layer.bias.data() + set * padded;
  scalar_t* features = scratch.features[l].data();
  scalar_t* slopes = scratch.slopes[l].data();
  for (int64_t first = 0; first < count; first += kMicro) {
    V logit[kMicro], aligned[kMicro];
    for (int row = 0; row < kMicro; ++row) logit[row] = aligned[row] = V{};
    for (int64_t h = 0; h < padded; h += kPair * kLanes) {
      V sum[kMicro][kPair];
      const V start[kPair] = {load<V>(bias + h), load<V>(bias + h + kLanes)};
      multiply<kBytes>(inputs, weight_t, padded, first, h, start, sum);
#pragma GCC unroll 3
      for (int row = 0; row < kMicro; row += 2) {
        constexpr int kCount = 2 * kPair;
        const V x[kCount] = {sum[row][0], sum[row][1], sum[row + 1][0], sum[row + 1][1]};
        V y[kCount], slope[kCount];
        if constexpr (kTanh || kBackward) {
#pragma GCC unroll 4
          for (int i = 0; i < kCount; ++i) {
            const Gelu<V> gelu =
                kTanh ? gelu_tanh<kLanes, scalar_t>(x[i]) : gelu_exact<kLanes>(x[i]);
            y[i] = gelu.value;
            slope[i] = gelu.slope;
          }
        } else {
          gelu_exact_values<kLanes>(x, y);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) {
          const int64_t unit = h + i % kPair * kLanes;
          const int64_t at = (first + row + i / kPair) * padded + unit;
          store(features + at, y[i]);
          if constexpr (kBackward) store(slopes + at, slope[i]);
          if constexpr (kLast) logit[row + i / kPair] += y[i] * load<V>(query + unit);
          if constexpr (kLast && kBackward) aligned[row + i / kPair] += y[i] * load<V>(grad + unit);
        }
      }
    }
    if constexpr (kLast) {
      for (int row = 0; row < kMicro; ++row) {
        scratch.logits[first + row] = sum_lanes<scalar_t, kLanes>(logit[row]);
        if constexpr (kBackward) {
          scratch.alignment[first + row] = sum_lanes<scalar_t, kLanes>(aligned[row]);
        }
      }
    }
  }
}

// Hidden features of all layers for a tile.
template <int kBytes, bool kTanh, bool kBackward, typename scalar_t>
MG2L_INLINE void hidden_features(const Network<scalar_t>& network, int64_t set,
                                 const scalar_t* query, const scalar_t* grad,
                                 Scratch<scalar_t>& scratch, int64_t count) {
  const size_t last = network.layers.size() - 1;
  for (size_t l = 0; l < last; ++l) {
    layer_features<kBytes, kTanh, kBackward, false>(network, l, set, query, grad, scratch, count);
  }
  layer_features<kBytes, kTanh, kBackward, true>(network, last, set, query, grad, scratch, count);
}

// exp(x - shift) of a tile, in place.
template <int kBytes, typename scalar_t>
MG2L_INLINE void exp_tile(scalar_t* x, scalar_t shift) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t t = 0; t < kTile; t += kLanes) {
    store(x + t, exp_lanes<kLanes>(load<V>(x + t) - splat<V>(shift)));
  }
}

// pooled[h] = keep * pooled[h] + sum over the tile of weight[t] * features[t, h].
template <int kBytes, typename scalar_t>
MG2L_INLINE void pool_tile(const scalar_t* features, const scalar_t* weights, int64_t padded,
                           int64_t count, scalar_t keep, scalar_t* pooled) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  constexpr int kBlock = 4;
  for (int64_t h = 0; h < padded; h += kBlock * kLanes) {
    V sum[kBlock];
#pragma GCC unroll 4
    for (int v = 0; v < kBlock; ++v) {
      sum[v] = h + v * kLanes < padded ? load<V>(pooled + h + v * kLanes) * splat<V>(keep) : V{};
    }
    if (h + kBlock * kLanes <= padded) {
      for (int64_t t = 0; t < count; ++t) {
        const V w = splat<V>(weights[t]);
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) {
          sum[v] += w * load<V>(features + t * padded + h + v * kLanes);
        }
      }
      for (int v = 0; v < kBlock; ++v) store(pooled + h + v * kLanes, sum[v]);
    } else {
      for (int v = 0; h + v * kLanes < padded; ++v) {
        for (int64_t t = 0; t < count; ++t) {
          sum[v] += splat<V>(weights[t]) * load<V>(features + t * padded + h + v * kLanes);
        }
        store(pooled + h + v * kLanes, sum[v]);
      }
    }
  }
}

// Online softmax over one agent's transitions of one context.
template <int kBytes, bool kTanh, typename input_t, typename scalar_t>
MG2L_INLINE void encode_one(const EncodeArrays<input_t, scalar_t>& a, Scratch<scalar_t>& scratch,
                            int64_t context, int64_t agent, scalar_t* pooled, scalar_t* lse,
                            input_t* weights) {
  const Network<scalar_t>& network = a.network;
  const int64_t set = a.sizes.own_weights ? agent : 0;
  const int64_t padded = network.last().padded, units = network.last().units;
  const scalar_t* query = network.query.data() + set * padded;
  scalar_t most = -std::numeric_limits<scalar_t>::infinity(), total = 0;
  std::fill(scratch.pooled.begin(), scratch.pooled.end(), scalar_t(0));
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, false>(network, set, query, query, scratch, count);
    scalar_t tile_most = most;
    for (int64_t t = 0; t < count; ++t) tile_most = std::max(tile_most, scratch.logits[t]);
    if (weights) {
      for (int64_t t = 0; t < count; ++t) weights[first + t] = narrow<input_t>(scratch.logits[t]);
    }
    const scalar_t keep = total > 0 ? std::exp(most - tile_most) : scalar_t(0);
    exp_tile<kBytes>(scratch.logits, tile_most);
    scalar_t tile_total = 0;
    for (int64_t t = 0; t < count; ++t) tile_total += scratch.logits[t];
    pool_tile<kBytes>(scratch.features.back().data(), scratch.logits, padded, count, keep,
                      scratch.pooled.data());
    total = total * keep + tile_total;
    most = tile_most;
  }
  const int64_t pair = context * a.sizes.agents + agent;
  const scalar_t scale = scalar_t(1) / total;
  for (int64_t h = 0; h < units; ++h) pooled[pair * units + h] = scratch.pooled[h] * scale;
  lse[pair] = most + std::log(total);
  if (weights) {
    for (int64_t t = 0; t < a.sizes.transitions; ++t) {
      weights[t] = narrow<input_t>(std::exp(widen<scalar_t>(weights[t]) - lse[pair]));
    }
  }
}

// Where the sums of a part of the contexts lie: for every layer [inputs, padded] of the weights and
// [padded] of the biases, then the query, [padded].
template <typename scalar_t>
struct Gradients {
  std::vector<scalar_t*> weight_t, bias;
  scalar_t* query;

  Gradients(scalar_t* memory, const Network<scalar_t>& network) {
    for (const Layer<scalar_t>& layer : network.layers) {
      weight_t.push_back(memory);
      memory += layer.inputs * layer.padded;
      bias.push_back(memory);
      memory += layer.padded;
    }
    query = memory;
  }

  static int64_t size(const Network<scalar_t>& network) {
    int64_t total = network.last().padded;
    for (const Layer<scalar_t>& layer : network.layers) total += (layer.inputs + 1) * layer.padded;
    return total;
  }
};

// What a layer's gradients (in its slopes) give to its weights, and to the layer before.
template <int kBytes, typename scalar_t>
MG2L_INLINE void layer_backward(const Network<scalar_t>& network, size_t l, int64_t set,
                                Scratch<scalar_t>& scratch, int64_t count,
                                Gradients<scalar_t>& sums) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  const Layer<scalar_t>& layer = network.layers[l];
  const scalar_t* grad = scratch.slopes[l].data();
  for (int64_t h = 0; h < layer.padded; h += kLanes) {
    V sum = load<V>(sums.bias[l] + h);
    for (int64_t t = 0; t < count; ++t) sum += load<V>(grad + t * layer.padded + h);
    store(sums.bias[l] + h, sum);
  }
  add_product_t<kBytes>(inputs_of(network, scratch, l), grad, layer.padded, count,
                        sums.weight_t[l]);
  if (l == 0) return;
  const int64_t padded = network.layers[l - 1].padded;
  const Rows<scalar_t> rows{grad, layer.padded, layer.units};
  const scalar_t* weight = layer.weight.data() + set * layer.units * padded;
  scalar_t* slopes = scratch.slopes[l - 1].data();
  for (int64_t first = 0; first < count; first += kMicro) {
    for (int64_t h = 0; h < padded; h += kPair * kLanes) {
      V sum[kMicro][kPair];
      const V zero[kPair] = {V{}, V{}};
      multiply<kBytes>(rows, weight, padded, first, h, zero, sum);
      for (int row = 0; row < kMicro; ++row) {
        scalar_t* to = slopes + (first + row) * padded + h;
        store(to, load<V>(to) * sum[row][0]);
        store(to + kLanes, load<V>(to + kLanes) * sum[row][1]);
      }
    }
  }
}

// Adds what one agent's transitions of one context give to the gradients. `grad` is that of the
// pooled features, padded; `along` its product with them.
template <int kBytes, bool kTanh, typename input_t, typename scalar_t>
MG2L_INLINE void encode_one_backward(const EncodeArrays<input_t, scalar_t>& a,
                                     Scratch<scalar_t>& scratch, int64_t context, int64_t agent,
                                     const scalar_t* grad, scalar_t along, scalar_t lse,
                                     Gradients<scalar_t>& sums, input_t* grad_context) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const Network<scalar_t>& network = a.network;
  const int64_t set = a.sizes.own_weights ? agent : 0, padded = network.last().padded;
  const scalar_t* query = network.query.data() + set * padded;
  const scalar_t* features = scratch.features.back().data();
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, true>(network, set, query, grad, scratch, count);
    exp_tile<kBytes>(scratch.logits, lse);  // now the pooling weights
    scalar_t* grad_logit = scratch.alignment;
    for (int64_t t = 0; t < count; ++t) {
      grad_logit[t] = scratch.logits[t] * (scratch.alignment[t] - along);
    }
    scalar_t* slopes = scratch.slopes.back().data();
    for (int64_t h = 0; h < padded; h += kLanes) {
      const V g = load<V>(grad + h), q = load<V>(query + h);
      V query_sum = load<V>(sums.query + h);
      for (int64_t t = 0; t < count; ++t) {
        const V slope = load<V>(slopes + t * padded + h), s = splat<V>(grad_logit[t]);
        store(slopes + t * padded + h, (splat<V>(scratch.logits[t]) * g + s * q) * slope);
        query_sum += s * load<V>(features + t * padded + h);
      }
      store(sums.query + h, query_sum);
    }
    for (size_t l = network.layers.size(); l-- > 0;) {
      layer_backward<kBytes>(network, l, set, scratch, count, sums);
    }
    if (grad_context) {
      const Layer<scalar_t>& layer = network.layers[0];
      const scalar_t* weight_t = layer.weight_t.data() + set * layer.inputs * layer.padded;
      for (int64_t t = 0; t < count; ++t) {
        input_t* to = grad_context + (a.row(context, first + t, agent) - a.context);
        const scalar_t* from = scratch.slopes[0].data() + t * layer.padded;
        for (int64_t f = 0; f < layer.inputs; ++f) {
          V sum{};
          for (int64_t h = 0; h < layer.padded; h += kLanes) {
            sum += load<V>(weight_t + f * layer.padded + h) * load<V>(from + h);
          }
          to[f] = narrow<input_t>(sum_lanes<scalar_t, kLanes>(sum));
        }
      }
    }
  }
}

template <typename input_t, typename scalar_t>
void encode_context_kernel(const EncodeArrays<input_t, scalar_t>& a, scalar_t* pooled,
                           scalar_t* lse, input_t* weights) {
  torch::stable::parallel_for(
      0, a.sizes.contexts * a.sizes.agents, 1, [&](int64_t begin, int64_t end) {
        Scratch<scalar_t> scratch(a.network, false);
        run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
          for (int64_t pair = begin; pair < end; ++pair) {
            const int64_t context = pair / a.sizes.agents, agent = pair % a.sizes.agents;
            input_t* to = weights ? weights + pair * a.sizes.transitions : nullptr;
            if (a.tanh_gelu) {
              encode_one<bytes, true>(a, scratch, context, agent, pooled, lse, to);
            } else {
              encode_one<bytes, false>(a, scratch, context, agent, pooled, lse, to);
            }
          }
        });
      });
}

// The results of the backward kernel, by layer.
template <typename input_t>
struct GradientsOut {
  std::vector<input_t*> weights, biases;
  input_t *query, *context;  // the last null when not wanted
};

// Every part sums the contexts [part * B / parts, (part + 1) * B / parts) of one set of weights in
// order, and the parts are added in order: the same however many threads there are.
template <typename input_t, typename scalar_t>
void encode_context_backward_kernel(const EncodeArrays<input_t, scalar_t>& a,
                                    const scalar_t* grad_pooled, const scalar_t* pooled,
                                    const scalar_t* lse, const GradientsOut<input_t>& out) {
  const Network<scalar_t>& network = a.network;
  const int64_t sets = a.sizes.weight_sets(), agents = a.sizes.agents;
  const int64_t units = network.last().units;
  const int64_t set_agents = a.sizes.own_weights ? 1 : agents;
  const int64_t parts =
      std::max<int64_t>(std::min((kParts + sets - 1) / sets, a.sizes.contexts), 1);
  const int64_t size = Gradients<scalar_t>::size(network);
  std::vector<scalar_t> partial(sets * parts * size, 0);
  torch::stable::parallel_for(0, sets * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<scalar_t> scratch(network, true);
    std::vector<scalar_t> grad(network.last().padded, 0);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        Gradients<scalar_t> sums(partial.data() + part * size, network);
        const int64_t set = part / parts, within = part % parts;
        for (int64_t context = within * a.sizes.contexts / parts;
             context < (within + 1) * a.sizes.contexts / parts; ++context) {
          for (int64_t agent = set; agent < set + set_agents; ++agent) {
            const int64_t pair = context * agents + agent;
            scalar_t along = 0;
            for (int64_t h = 0; h < units; ++h) {
              grad[h] = grad_pooled[pair * units + h];
              along += grad[h] * pooled[pair * units + h];
            }
            if (a.tanh_gelu) {
              encode_one_backward<bytes, true>(a, scratch, context, agent, grad.data(), along,
                                               lse[pair], sums, out.context);
            } else {
              encode_one_backward<bytes, false>(a, scratch, context, agent, grad.data(), along,
                                                lse[pair], sums, out.context);
            }
          }
        }
      }
    });
  });
  for (int64_t set = 0; set < sets; ++set) {
    scalar_t* first = partial.data() + set * parts * size;
    for (int64_t part = 1; part < parts; ++part) {
      const scalar_t* other = first + part * size;
      for (int64_t i = 0; i < size; ++i) first[i] += other[i];
    }
    const Gradients<scalar_t> sums(first, network);
    for (size_t l = 0; l < network.layers.size(); ++l) {
      const Layer<scalar_t>& layer = network.layers[l];
      for (int64_t h = 0; h < layer.units; ++h) {
        for (int64_t i = 0; i < layer.inputs; ++i) {
          out.weights[l][(set * layer.units + h) * layer.inputs + i] =
              narrow<input_t>(sums.weight_t[l][i * layer.padded + h]);
        }
        out.biases[l][set * layer.units + h] = narrow<input_t>(sums.bias[l][h]);
      }
    }
    for (int64_t h = 0; h < units; ++h) {
      out.query[set * units + h] = narrow<input_t>(sums.query[h]);
    }
  }
}

// Calls body(input, accumulated) with zeros of the types that belong to a dtype.
template <typename Body>
void for_dtype(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) {
    body(0.0F, 0.0F);
  } else if (dtype == ScalarType::Double) {
    body(0.0, 0.0);
  } else {
    body(BFloat16(), 0.0F);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> encode_context_cpu(const Tensor& context_,
                                                      const std::vector<Tensor>& weights_,
                                                      const std::vector<Tensor>& biases_,
                                                      const Tensor& query_,
                                                      const std::optional<Tensor>& index_,
                                                      bool tanh_gelu, bool return_weights) {
  const EncodeSizes sizes = check_encode_context(context_, weights_, biases_, query_, index_);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const ScalarType sums = accumulated(context_.scalar_type());
  Tensor pooled =
      torch::stable::new_empty(context_, {sizes.contexts, sizes.agents, sizes.units.back()}, sums);
  Tensor lse = torch::stable::new_empty(context_, {sizes.contexts, sizes.agents}, sums);
  Tensor pooling = torch::stable::new_empty(
      context_,
      {return_weights ? sizes.contexts : 0, sizes.agents, return_weights ? sizes.transitions : 0});
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Network<scalar_t> network(sizes, tensors, false, input);
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context), index,
                                                 network, tanh_gelu};
    encode_context_kernel(arrays, data<scalar_t>(pooled), data<scalar_t>(lse),
                          return_weights ? data<input_t>(pooling) : nullptr);
  });
  return {pooled, lse, pooling};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> encode_context_backward_cpu(
    const Tensor& grad_pooled_, const Tensor& context_, const std::vector<Tensor>& weights_,
    const std::vector<Tensor>& biases_, const Tensor& query_, const std::optional<Tensor>& index_,
    bool tanh_gelu, const Tensor& pooled_, const Tensor& lse_, bool want_context) {
  const EncodeSizes sizes = check_encode_context(context_, weights_, biases_, query_, index_);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const Tensor grad_pooled = as_contiguous(grad_pooled_), pooled = as_contiguous(pooled_);
  const Tensor lse = as_contiguous(lse_);
  const auto like = [](const Tensor& tensor) {
    return torch::stable::new_empty(tensor, sizes_of(tensor));
  };
  Tensor grad_context =
      torch::stable::new_empty(context_, want_context ? sizes_of(context_) : Sizes{0});
  std::vector<Tensor> grad_weights, grad_biases;
  for (const Tensor& weight : weights_) grad_weights.push_back(like(weight));
  for (const Tensor& bias : biases_) grad_biases.push_back(like(bias));
  Tensor grad_query = like(query_);
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const Network<scalar_t> network(sizes, tensors, true, input);
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context),
                                                 data_or_null<int64_t>(tensors.index), network,
                                                 tanh_gelu};
    GradientsOut<input_t> out{
        {}, {}, data<input_t>(grad_query), want_context ? data<input_t>(grad_context) : nullptr};
    for (Tensor& grad : grad_weights) out.weights.push_back(data<input_t>(grad));
    for (Tensor& grad : grad_biases) out.biases.push_back(data<input_t>(grad));
    encode_context_backward_kernel(arrays, data<scalar_t>(grad_pooled), data<scalar_t>(pooled),
                                   data<scalar_t>(lse), out);
  });
  return {grad_context, grad_weights, grad_biases, grad_query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("encode_context", TORCH_BOX(&mg2l::encode_context_cpu));
  m.impl("encode_context_backward", TORCH_BOX(&mg2l::encode_context_backward_cpu));
}
