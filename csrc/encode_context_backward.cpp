// CPU kernel of `encode_context_backward`: computes the features of each tile again.
#include <tuple>

#include "encode_tiles.h"

namespace mg2l {
namespace {

constexpr int64_t kParts = 32;  // partial sums of the gradients, however many threads there are

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
  V zero{};  // x - x is 0, or NaN
  for (int64_t h = 0; h < layer.padded; h += kLanes) {
    V sum = load<V>(sums.bias[l] + h);
    for (int64_t t = 0; t < count; ++t) sum += load<V>(grad + t * layer.padded + h);
    store(sums.bias[l] + h, sum);
    zero += sum - sum;
  }
  const Rows<scalar_t> inputs = inputs_of(network, scratch, l);
  if (l == 0 && scratch.nonzeros.listed && sum_lanes<scalar_t, kLanes>(zero) == 0) {
    for (int64_t t = 0; t < count; ++t) {
      add_listed_product_t<kBytes>(inputs.data + t * inputs.stride, scratch.nonzeros.row(t),
                                   scratch.nonzeros.counts[t], grad + t * layer.padded,
                                   layer.padded, sums.weight_t[l]);
    }
  } else {
    add_product_t<kBytes>(inputs, grad, layer.padded, count, sums.weight_t[l]);
  }
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
// pooled features, padded; `delta` its product with them.
template <int kBytes, bool kTanh, typename input_t, typename scalar_t>
MG2L_INLINE void encode_one_backward(const EncodeArrays<input_t, scalar_t>& a,
                                     Scratch<scalar_t>& scratch, int64_t context, int64_t agent,
                                     const scalar_t* grad, scalar_t delta, scalar_t lse,
                                     Gradients<scalar_t>& sums, input_t* grad_context) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const Network<scalar_t>& network = a.network;
  const int64_t set = a.sizes.own_weights ? agent : 0, padded = network.last().padded;
  const scalar_t* query = network.query.data() + set * padded;
  const scalar_t* features = scratch.features.back().data();
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather<kBytes>(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, true>(network, set, query, grad, scratch, count);
    exp_tile<kBytes>(scratch.logits, lse);  // now the pooling weights
    if (std::isnan(lse)) std::fill(scratch.logits, scratch.logits + count, lse);
    scalar_t* grad_logit = scratch.alignment;
    for (int64_t t = 0; t < count; ++t) {
      grad_logit[t] = scratch.logits[t] * (scratch.alignment[t] - delta);
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
            scalar_t delta = 0;
            for (int64_t h = 0; h < units; ++h) {
              grad[h] = grad_pooled[pair * units + h];
              delta += grad[h] * pooled[pair * units + h];
            }
            if (a.tanh_gelu) {
              encode_one_backward<bytes, true>(a, scratch, context, agent, grad.data(), delta,
                                               lse[pair], sums, out.context);
            } else {
              encode_one_backward<bytes, false>(a, scratch, context, agent, grad.data(), delta,
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

}  // namespace

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> encode_context_backward_cpu(
    const Tensor& grad_pooled_, const Tensor& context_, const std::vector<Tensor>& weights_,
    const std::vector<Tensor>& biases_, const Tensor& query_, const std::optional<Tensor>& index_,
    bool tanh_gelu, const Tensor& pooled_, const Tensor& lse_, bool want_context) {
  const EncodeSizes sizes = check_encode_context_backward(
      grad_pooled_, context_, weights_, biases_, query_, index_, pooled_, lse_, want_context);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const Tensor grad_pooled = as_contiguous(grad_pooled_), pooled = as_contiguous(pooled_);
  const Tensor lse = as_contiguous(lse_);
  EncodeBackwardOutputs grad(context_, weights_, biases_, query_, want_context);
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Network<scalar_t> network(sizes, tensors, true, input);
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context), index,
                                                 network, tanh_gelu};
    GradientsOut<input_t> out{
        {}, {}, data<input_t>(grad.query), want_context ? data<input_t>(grad.context) : nullptr};
    for (Tensor& weight : grad.weights) out.weights.push_back(data<input_t>(weight));
    for (Tensor& bias : grad.biases) out.biases.push_back(data<input_t>(bias));
    encode_context_backward_kernel(arrays, data<scalar_t>(grad_pooled), data<scalar_t>(pooled),
                                   data<scalar_t>(lse), out);
  });
  return {grad.context, grad.weights, grad.biases, grad.query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("encode_context_backward", TORCH_BOX(&mg2l::encode_context_backward_cpu));
}
