// CPU kernels of `encode_context` and `encode_context_backward`.
#include "encode_context.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "bfloat16.h"
#include "vec.h"

namespace mg2l {
namespace {

constexpr int64_t kTile = 48;   // transitions worked on together: their features stay in L1
constexpr int kPair = 2;        // vectors of hidden units that a micro-kernel holds
constexpr int64_t kParts = 64;  // partial sums of the gradients, however many threads there are

// A micro-kernel takes this many transitions: with two vectors each, all registers but four.
template <int kBytes>
constexpr int kRows = kBytes == 64 ? 12 : 6;
static_assert(kTile % 12 == 0);

// Weights as the kernels read them: in accumulation precision, hidden units along the vectors,
// padded with zeros to whole pairs of the widest vectors.
template <typename scalar_t>
struct Layer {
  int64_t features, hidden, padded;
  std::vector<scalar_t> weight_t;  // [sets, F, padded]
  std::vector<scalar_t> bias;      // [sets, padded]
  std::vector<scalar_t> query;     // [sets, padded]

  template <typename input_t>
  Layer(const EncodeSizes& sizes, const input_t* weight_, const input_t* bias_,
        const input_t* query_)
      : features(sizes.features), hidden(sizes.hidden) {
    constexpr int64_t kStep = kPair * 64 / sizeof(scalar_t);
    padded = (hidden + kStep - 1) / kStep * kStep;
    const int64_t sets = sizes.weight_sets();
    weight_t.assign(sets * features * padded, 0);
    bias.assign(sets * padded, 0);
    query.assign(sets * padded, 0);
    for (int64_t set = 0; set < sets; ++set) {
      for (int64_t h = 0; h < hidden; ++h) {
        bias[set * padded + h] = widen<scalar_t>(bias_[set * hidden + h]);
        query[set * padded + h] = widen<scalar_t>(query_[set * hidden + h]);
        for (int64_t f = 0; f < features; ++f) {
          weight_t[(set * features + f) * padded + h] =
              widen<scalar_t>(weight_[(set * hidden + h) * features + f]);
        }
      }
    }
  }
};

// Everything both kernels read. `index` is null when contexts follow each other in `context`.
template <typename input_t, typename scalar_t>
struct EncodeArrays {
  EncodeSizes sizes;
  const input_t* context;  // [R, A, F]
  const int64_t* index;    // [B, T]
  const Layer<scalar_t>* layer;
  bool tanh_gelu;

  const input_t* row(int64_t context_id, int64_t t, int64_t agent) const {
    const int64_t at = context_id * sizes.transitions + t;
    return context + ((index ? index[at] : at) * sizes.agents + agent) * sizes.features;
  }
};

// One thread's memory: a tile of transitions and what is known of their hidden units.
template <typename scalar_t>
struct Scratch {
  std::vector<scalar_t> inputs;           // [kTile, F]
  std::vector<scalar_t> features;         // [kTile, padded]: gelu
  std::vector<scalar_t> slopes;           // [kTile, padded]: its derivative, then grad of inputs
  std::vector<scalar_t> pooled;           // [padded]
  alignas(64) scalar_t logits[kTile];     // query . features
  alignas(64) scalar_t alignment[kTile];  // grad . features

  Scratch(const Layer<scalar_t>& layer, bool backward)
      : inputs(kTile * layer.features, 0),
        features(kTile * layer.padded),
        slopes(backward ? kTile * layer.padded : 0),
        pooled(layer.padded) {}
};

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

// Hidden features of a tile and their product with the query; with kBackward also the slopes and
// the product with `grad`.
template <int kBytes, bool kTanh, bool kBackward, typename scalar_t>
MG2L_INLINE void hidden_features(const Layer<scalar_t>& layer, const scalar_t* weight_t,
                                 const scalar_t* bias, const scalar_t* query, const scalar_t* grad,
                                 Scratch<scalar_t>& scratch, int64_t count) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  const int64_t features = layer.features, padded = layer.padded;
  for (int64_t first = 0; first < count; first += kMicro) {
    const scalar_t* inputs = scratch.inputs.data() + first * features;
    V logit[kMicro], aligned[kMicro];
    for (int row = 0; row < kMicro; ++row) logit[row] = aligned[row] = V{};
    for (int64_t h = 0; h < padded; h += kPair * kLanes) {
      V sum[kMicro][kPair];
#pragma GCC unroll 12
      for (int row = 0; row < kMicro; ++row) {
        sum[row][0] = load<V>(bias + h);
        sum[row][1] = load<V>(bias + h + kLanes);
      }
      for (int64_t f = 0; f < features; ++f) {
        const V w0 = load<V>(weight_t + f * padded + h);
        const V w1 = load<V>(weight_t + f * padded + h + kLanes);
#pragma GCC unroll 12
        for (int row = 0; row < kMicro; ++row) {
          const V x = splat<V>(inputs[row * features + f]);
          sum[row][0] += x * w0;
          sum[row][1] += x * w1;
        }
      }
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
          store(scratch.features.data() + at, y[i]);
          logit[row + i / kPair] += y[i] * load<V>(query + unit);
          if constexpr (kBackward) {
            store(scratch.slopes.data() + at, slope[i]);
            aligned[row + i / kPair] += y[i] * load<V>(grad + unit);
          }
        }
      }
    }
    for (int row = 0; row < kMicro; ++row) {
      scratch.logits[first + row] = sum_lanes<scalar_t, kLanes>(logit[row]);
      if constexpr (kBackward) {
        scratch.alignment[first + row] = sum_lanes<scalar_t, kLanes>(aligned[row]);
      }
    }
  }
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
  const Layer<scalar_t>& layer = *a.layer;
  const int64_t set = a.sizes.own_weights ? agent : 0, padded = layer.padded;
  const scalar_t* query = layer.query.data() + set * padded;
  scalar_t most = -std::numeric_limits<scalar_t>::infinity(), total = 0;
  std::fill(scratch.pooled.begin(), scratch.pooled.end(), scalar_t(0));
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, false>(
        layer, layer.weight_t.data() + set * layer.features * padded,
        layer.bias.data() + set * padded, query, query, scratch, count);
    scalar_t tile_most = most;
    for (int64_t t = 0; t < count; ++t) tile_most = std::max(tile_most, scratch.logits[t]);
    if (weights) {
      for (int64_t t = 0; t < count; ++t) weights[first + t] = narrow<input_t>(scratch.logits[t]);
    }
    const scalar_t keep = total > 0 ? std::exp(most - tile_most) : scalar_t(0);
    exp_tile<kBytes>(scratch.logits, tile_most);
    scalar_t tile_total = 0;
    for (int64_t t = 0; t < count; ++t) tile_total += scratch.logits[t];
    pool_tile<kBytes>(scratch.features.data(), scratch.logits, padded, count, keep,
                      scratch.pooled.data());
    total = total * keep + tile_total;
    most = tile_most;
  }
  const int64_t pair = context * a.sizes.agents + agent;
  const scalar_t scale = scalar_t(1) / total;
  for (int64_t h = 0; h < layer.hidden; ++h) {
    pooled[pair * layer.hidden + h] = scratch.pooled[h] * scale;
  }
  lse[pair] = most + std::log(total);
  if (weights) {
    for (int64_t t = 0; t < a.sizes.transitions; ++t) {
      weights[t] = narrow<input_t>(std::exp(widen<scalar_t>(weights[t]) - lse[pair]));
    }
  }
}

// Sums over a part of the contexts: [F, padded] of the weights, then bias and query, [padded] each.
template <typename scalar_t>
struct Gradients {
  scalar_t *weight_t, *bias, *query;

  Gradients(scalar_t* memory, const Layer<scalar_t>& layer)
      : weight_t(memory),
        bias(memory + layer.features * layer.padded),
        query(bias + layer.padded) {}

  static int64_t size(const Layer<scalar_t>& layer) { return (layer.features + 2) * layer.padded; }
};

// weight_t[f, h] += sum over the tile of inputs[t, f] * grad[t, h].
template <int kBytes, typename scalar_t>
MG2L_INLINE void weight_gradient(const scalar_t* inputs, const scalar_t* grad, int64_t features,
                                 int64_t padded, int64_t count, scalar_t* weight_t) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  for (int64_t h = 0; h < padded; h += kPair * kLanes) {
    for (int64_t first = 0; first < features; first += kMicro) {
      // The last block reaches back over the one before it, and adds only what is its own.
      const int64_t start = std::max<int64_t>(std::min(first, features - kMicro), 0);
      V sum[kMicro][kPair];
#pragma GCC unroll 12
      for (int f = 0; f < kMicro; ++f) sum[f][0] = sum[f][1] = V{};
      if (features >= kMicro) {
        for (int64_t t = 0; t < count; ++t) {
          const V g0 = load<V>(grad + t * padded + h), g1 = load<V>(grad + t * padded + h + kLanes);
#pragma GCC unroll 12
          for (int f = 0; f < kMicro; ++f) {
            const V x = splat<V>(inputs[t * features + start + f]);
            sum[f][0] += x * g0;
            sum[f][1] += x * g1;
          }
        }
      } else {
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t f = 0; f < features; ++f) {
            const V x = splat<V>(inputs[t * features + f]);
            sum[f][0] += x * load<V>(grad + t * padded + h);
            sum[f][1] += x * load<V>(grad + t * padded + h + kLanes);
          }
        }
      }
      for (int64_t f = first - start; f < std::min<int64_t>(kMicro, features - start); ++f) {
        scalar_t* to = weight_t + (start + f) * padded + h;
        store(to, load<V>(to) + sum[f][0]);
        store(to + kLanes, load<V>(to + kLanes) + sum[f][1]);
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
  const Layer<scalar_t>& layer = *a.layer;
  const int64_t set = a.sizes.own_weights ? agent : 0, padded = layer.padded;
  const scalar_t* weight_t = layer.weight_t.data() + set * layer.features * padded;
  const scalar_t* query = layer.query.data() + set * padded;
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, true>(layer, weight_t, layer.bias.data() + set * padded, query,
                                         grad, scratch, count);
    exp_tile<kBytes>(scratch.logits, lse);  // now the pooling weights
    scalar_t* grad_logit = scratch.alignment;
    for (int64_t t = 0; t < count; ++t) {
      grad_logit[t] = scratch.logits[t] * (scratch.alignment[t] - along);
    }
    for (int64_t h = 0; h < padded; h += kLanes) {
      const V g = load<V>(grad + h), q = load<V>(query + h);
      V bias_sum{}, query_sum{};
      for (int64_t t = 0; t < count; ++t) {
        scalar_t* slope = scratch.slopes.data() + t * padded + h;
        const V x =
            (splat<V>(scratch.logits[t]) * g + splat<V>(grad_logit[t]) * q) * load<V>(slope);
        store(slope, x);
        bias_sum += x;
        query_sum += splat<V>(grad_logit[t]) * load<V>(scratch.features.data() + t * padded + h);
      }
      store(sums.bias + h, load<V>(sums.bias + h) + bias_sum);
      store(sums.query + h, load<V>(sums.query + h) + query_sum);
    }
    weight_gradient<kBytes>(scratch.inputs.data(), scratch.slopes.data(), layer.features, padded,
                            count, sums.weight_t);
    if (grad_context) {
      for (int64_t t = 0; t < count; ++t) {
        input_t* to = grad_context + (a.row(context, first + t, agent) - a.context);
        for (int64_t f = 0; f < layer.features; ++f) {
          V sum{};
          for (int64_t h = 0; h < padded; h += kLanes) {
            sum += load<V>(weight_t + f * padded + h) *
                   load<V>(scratch.slopes.data() + t * padded + h);
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
        Scratch<scalar_t> scratch(*a.layer, false);
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

// Every part sums the contexts [part * B / parts, (part + 1) * B / parts) of one set of weights in
// order, and the parts are added in order: the same however many threads there are.
template <typename input_t, typename scalar_t>
void encode_context_backward_kernel(const EncodeArrays<input_t, scalar_t>& a,
                                    const scalar_t* grad_pooled, const scalar_t* pooled,
                                    const scalar_t* lse, input_t* grad_context,
                                    input_t* grad_weight, input_t* grad_bias, input_t* grad_query) {
  const Layer<scalar_t>& layer = *a.layer;
  const int64_t sets = a.sizes.weight_sets(), hidden = layer.hidden, agents = a.sizes.agents;
  const int64_t set_agents = a.sizes.own_weights ? 1 : agents;
  const int64_t parts =
      std::max<int64_t>(std::min((kParts + sets - 1) / sets, a.sizes.contexts), 1);
  const int64_t size = Gradients<scalar_t>::size(layer);
  std::vector<scalar_t> partial(sets * parts * size, 0);
  torch::stable::parallel_for(0, sets * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<scalar_t> scratch(layer, true);
    std::vector<scalar_t> grad(layer.padded, 0);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        Gradients<scalar_t> sums(partial.data() + part * size, layer);
        const int64_t set = part / parts, within = part % parts;
        for (int64_t context = within * a.sizes.contexts / parts;
             context < (within + 1) * a.sizes.contexts / parts; ++context) {
          for (int64_t agent = set; agent < set + set_agents; ++agent) {
            const int64_t pair = context * agents + agent;
            scalar_t along = 0;
            for (int64_t h = 0; h < hidden; ++h) {
              grad[h] = grad_pooled[pair * hidden + h];
              along += grad[h] * pooled[pair * hidden + h];
            }
            if (a.tanh_gelu) {
              encode_one_backward<bytes, true>(a, scratch, context, agent, grad.data(), along,
                                               lse[pair], sums, grad_context);
            } else {
              encode_one_backward<bytes, false>(a, scratch, context, agent, grad.data(), along,
                                                lse[pair], sums, grad_context);
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
    const Gradients<scalar_t> sums(first, layer);
    for (int64_t h = 0; h < hidden; ++h) {
      for (int64_t f = 0; f < layer.features; ++f) {
        grad_weight[(set * hidden + h) * layer.features + f] =
            narrow<input_t>(sums.weight_t[f * layer.padded + h]);
      }
      grad_bias[set * hidden + h] = narrow<input_t>(sums.bias[h]);
      grad_query[set * hidden + h] = narrow<input_t>(sums.query[h]);
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

std::tuple<Tensor, Tensor, Tensor> encode_context_cpu(const Tensor& context_, const Tensor& weight_,
                                                      const Tensor& bias_, const Tensor& query_,
                                                      const std::optional<Tensor>& index_,
                                                      bool tanh_gelu, bool return_weights) {
  const EncodeSizes sizes = check_encode_context(context_, weight_, bias_, query_, index_);
  const EncodeTensors tensors(context_, weight_, bias_, query_, index_);
  const ScalarType sums = accumulated(context_.scalar_type());
  Tensor pooled =
      torch::stable::new_empty(context_, {sizes.contexts, sizes.agents, sizes.hidden}, sums);
  Tensor lse = torch::stable::new_empty(context_, {sizes.contexts, sizes.agents}, sums);
  Tensor weights = torch::stable::new_empty(
      context_,
      {return_weights ? sizes.contexts : 0, sizes.agents, return_weights ? sizes.transitions : 0});
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Layer<scalar_t> layer(sizes, data<input_t>(tensors.weight), data<input_t>(tensors.bias),
                                data<input_t>(tensors.query));
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context), index,
                                                 &layer, tanh_gelu};
    encode_context_kernel(arrays, data<scalar_t>(pooled), data<scalar_t>(lse),
                          return_weights ? data<input_t>(weights) : nullptr);
  });
  return {pooled, lse, weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_context_backward_cpu(
    const Tensor& grad_pooled_, const Tensor& context_, const Tensor& weight_, const Tensor& bias_,
    const Tensor& query_, const std::optional<Tensor>& index_, bool tanh_gelu,
    const Tensor& pooled_, const Tensor& lse_, bool want_context) {
  const EncodeSizes sizes = check_encode_context(context_, weight_, bias_, query_, index_);
  const EncodeTensors tensors(context_, weight_, bias_, query_, index_);
  const Tensor grad_pooled = as_contiguous(grad_pooled_), pooled = as_contiguous(pooled_);
  const Tensor lse = as_contiguous(lse_);
  Tensor grad_context =
      torch::stable::new_empty(context_, want_context ? sizes_of(context_) : Sizes{0});
  Tensor grad_weight = torch::stable::new_empty(context_, sizes_of(weight_));
  Tensor grad_bias = torch::stable::new_empty(context_, sizes_of(bias_));
  Tensor grad_query = torch::stable::new_empty(context_, sizes_of(query_));
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const Layer<scalar_t> layer(sizes, data<input_t>(tensors.weight), data<input_t>(tensors.bias),
                                data<input_t>(tensors.query));
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context),
                                                 data_or_null<int64_t>(tensors.index), &layer,
                                                 tanh_gelu};
    encode_context_backward_kernel(
        arrays, data<scalar_t>(grad_pooled), data<scalar_t>(pooled), data<scalar_t>(lse),
        want_context ? data<input_t>(grad_context) : nullptr, data<input_t>(grad_weight),
        data<input_t>(grad_bias), data<input_t>(grad_query));
  });
  return {grad_context, grad_weight, grad_bias, grad_query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("encode_context", TORCH_BOX(&mg2l::encode_context_cpu));
  m.impl("encode_context_backward", TORCH_BOX(&mg2l::encode_context_backward_cpu));
}
