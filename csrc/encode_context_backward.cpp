// CPU kernel of `encode_context_backward`: computes the features of each tile again.
#include <tuple>

#include "encode_tiles.h"

namespace mg2l {
namespace {

// Partial sums of the gradients, however many threads there are: a power of two, so that threads
// have equally many, of at least so many transitions that adding them up takes little.
constexpr int64_t kParts = 32, kPartRows = 192;

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

// Multiplies the slopes of activations by the gradients that reach them, rows times weight.
template <int kBytes, typename scalar_t, typename operand_t>
MG2L_INLINE void scale_slopes(const Rows<operand_t>& rows, const operand_t* weight, int64_t padded,
                              int64_t count, scalar_t* slopes) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
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

// The products of `layer_backward` where they are of bfloat16.
template <int kBytes>
MG2L_INLINE void rounded_backward(const Network<float>& network, size_t l, int64_t set,
                                  Scratch<float>& scratch, int64_t count, Gradients<float>& sums) {
  const Layer<float>& layer = network.layers[l];
  const Rows<float> inputs = inputs_of(network, scratch, l);
  const float* grad = scratch.slopes[l].data();
  PairTiles& pairs = scratch.pairs[l];
  pair_across(inputs.data, inputs.stride, count, inputs.width, pairs.across.data(),
              pairs.stride_across);
  pair_across(grad, layer.padded, count, layer.padded, pairs.grads_across.data(), layer.padded);
  add_product_t<kBytes>(Rows<Pair>{pairs.across.data(), pairs.stride_across, inputs.width},
                        pairs.grads_across.data(), layer.padded, pairs_of(count), sums.weight_t[l]);
  if (l == 0) return;
  pair_along(grad, layer.padded, count, layer.units, pairs.grads_along.data(), pairs.stride_units);
  const int64_t padded = network.layers[l - 1].padded, width = pairs_of(layer.units);
  const Rows<Pair> rows{pairs.grads_along.data(), pairs.stride_units, width};
  const Pair* weight = layer.pairs.data() + set * width * padded;
  scale_slopes<kBytes>(rows, weight, padded, count, scratch.slopes[l - 1].data());
}

// What a layer's gradients (in its slopes) give to its weights, and to the layer before.
template <int kBytes, typename scalar_t>
MG2L_INLINE void layer_backward(const Network<scalar_t>& network, size_t l, int64_t set,
                                Scratch<scalar_t>& scratch, int64_t count,
                                Gradients<scalar_t>& sums) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
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
  if constexpr (kHasPairs<kBytes, scalar_t>) {
    if (network.bfloat16) return rounded_backward<kBytes>(network, l, set, scratch, count, sums);
  }
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
  scale_slopes<kBytes>(rows, weight, padded, count, scratch.slopes[l - 1].data());
}

// Adds what the transitions of a span give to the gradients. `grad` is that of every pair's pooled
// features, padded; `delta` its product with them.
template <int kBytes, bool kTanh, typename input_t, typename scalar_t>
MG2L_INLINE void encode_span_backward(const EncodeArrays<input_t, scalar_t>& a,
                                      Scratch<scalar_t>& scratch, const Span& span,
                                      const scalar_t* grad, const scalar_t* delta,
                                      const scalar_t* lse, Gradients<scalar_t>& sums,
                                      input_t* grad_context) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const Network<scalar_t>& network = a.network;
  const int64_t set = a.sizes.own_weights ? span.first % a.sizes.agents : 0;
  const int64_t padded = network.last().padded, rows = span.pairs * a.sizes.transitions;
  const scalar_t* query = network.query.data() + set * padded;
  const scalar_t* features = scratch.features.back().data();
  scalar_t* slopes = scratch.slopes.back().data();
  for (int64_t first = 0; first < rows; first += kTile) {
    const int64_t count = std::min(kTile, rows - first);
    const int64_t each = span.pairs > 1 ? a.sizes.transitions : count;
    gather<kBytes>(a, scratch, span, first, count);
    hidden_features<kBytes, kTanh, true>(network, set, query, scratch, count);
    for (int64_t i = 0; i < span.pairs; ++i) {
      scalar_t* logits = scratch.logits + i * each;
      for (int64_t t = 0; t < each; ++t) logits[t] -= lse[span.pair(i)];
    }
    exp_tile<kBytes>(scratch.logits);  // now the pooling weights
    for (int64_t i = 0; i < span.pairs; ++i) {
      const scalar_t of_pair = lse[span.pair(i)];
      scalar_t* weights = scratch.logits + i * each;
      if (std::isnan(of_pair)) std::fill(weights, weights + each, of_pair);
      for (int64_t t = 0; t < each; ++t) {
        const scalar_t* row = features + (i * each + t) * padded;
        V aligned{};
        for (int64_t h = 0; h < padded; h += kLanes) {
          aligned += load<V>(grad + i * padded + h) * load<V>(row + h);
        }
        scratch.grad_logits[i * each + t] =
            weights[t] * (sum_lanes<scalar_t, kLanes>(aligned) - delta[i]);
      }
    }
    for (int64_t h = 0; h < padded; h += kLanes) {
      const V q = load<V>(query + h);
      V query_sum = load<V>(sums.query + h);
      for (int64_t i = 0; i < span.pairs; ++i) {
        const V g = load<V>(grad + i * padded + h);
        for (int64_t t = i * each; t < (i + 1) * each; ++t) {
          const V slope = load<V>(slopes + t * padded + h), s = splat<V>(scratch.grad_logits[t]);
          store(slopes + t * padded + h, (splat<V>(scratch.logits[t]) * g + s * q) * slope);
          query_sum += s * load<V>(features + t * padded + h);
        }
      }
      store(sums.query + h, query_sum);
    }
    for (size_t l = network.layers.size(); l-- > 0;) {
      layer_backward<kBytes>(network, l, set, scratch, count, sums);
    }
    if (grad_context) {
      const Layer<scalar_t>& layer = network.layers[0];
      const scalar_t* weight_t = layer.weight_t.data() + set * layer.inputs * layer.padded;
      for_rows(a, span, first, count, [&](int64_t t, const input_t* row) MG2L_INLINE_LAMBDA {
        input_t* to = grad_context + (row - a.context);
        const scalar_t* from = scratch.slopes[0].data() + t * layer.padded;
        for (int64_t f = 0; f < layer.inputs; ++f) {
          V sum{};
          for (int64_t h = 0; h < layer.padded; h += kLanes) {
            sum += load<V>(weight_t + f * layer.padded + h) * load<V>(from + h);
          }
          to[f] = narrow<input_t>(sum_lanes<scalar_t, kLanes>(sum));
        }
      });
    }
  }
}

// The results of the backward kernel, by layer.
template <typename input_t>
struct GradientsOut {
  std::vector<input_t*> weights, biases;
  input_t *query, *context;  // the last null when not wanted
};

// How many parts the contexts of a set of weights are summed in, by their sizes alone.
int64_t parts_of(const EncodeSizes& sizes) {
  const int64_t agents = sizes.own_weights ? 1 : sizes.agents;
  const int64_t most = std::min({kParts / std::max<int64_t>(sizes.weight_sets(), 1), sizes.contexts,
                                 sizes.contexts * agents * sizes.transitions / kPartRows});
  int64_t parts = 1;
  while (2 * parts <= most) parts *= 2;
  return parts;
}

// Every part sums the contexts [part * B / parts, (part + 1) * B / parts) of one set of weights in
// order, and the parts are added in order: the same however many threads there are.
template <typename input_t, typename scalar_t>
void encode_context_backward_kernel(const EncodeArrays<input_t, scalar_t>& a,
                                    const scalar_t* grad_pooled, const scalar_t* pooled,
                                    const scalar_t* lse, const GradientsOut<input_t>& out) {
  const Network<scalar_t>& network = a.network;
  const int64_t sets = a.sizes.weight_sets(), agents = a.sizes.agents;
  const int64_t each = a.sizes.own_weights ? 1 : agents;  // pairs of a context and a set
  const int64_t units = network.last().units, padded = network.last().padded;
  const int64_t parts = parts_of(a.sizes), at_once = pairs_of_tile(a.sizes);
  const int64_t size = Gradients<scalar_t>::size(network);
  std::vector<scalar_t> partial(sets * parts * size, 0);
  torch::stable::parallel_for(0, sets * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<scalar_t> scratch(network, 0, true);
    std::vector<scalar_t> grad(at_once * padded, 0), delta(at_once);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        Gradients<scalar_t> sums(partial.data() + part * size, network);
        const int64_t set = part / parts, within = part % parts;
        const int64_t last = (within + 1) * a.sizes.contexts / parts * each;
        Span span{set, a.sizes.own_weights ? agents : 1, 0};
        for (int64_t i = within * a.sizes.contexts / parts * each; i < last; i += span.pairs) {
          span.first = set + i * span.stride;
          span.pairs = std::min(at_once, last - i);
          for (int64_t k = 0; k < span.pairs; ++k) {
            const int64_t pair = span.pair(k);
            delta[k] = 0;
            for (int64_t h = 0; h < units; ++h) {
              grad[k * padded + h] = grad_pooled[pair * units + h];
              delta[k] += grad[k * padded + h] * pooled[pair * units + h];
            }
          }
          if (a.tanh_gelu) {
            encode_span_backward<bytes, true>(a, scratch, span, grad.data(), delta.data(), lse,
                                              sums, out.context);
          } else {
            encode_span_backward<bytes, false>(a, scratch, span, grad.data(), delta.data(), lse,
                                               sums, out.context);
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
    bool tanh_gelu, bool bfloat16, const Tensor& pooled_, const Tensor& lse_, bool want_context) {
  const EncodeSizes sizes =
      check_encode_context_backward(grad_pooled_, context_, weights_, biases_, query_, index_,
                                    bfloat16, pooled_, lse_, want_context);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const Tensor grad_pooled = as_contiguous(grad_pooled_), pooled = as_contiguous(pooled_);
  const Tensor lse = as_contiguous(lse_);
  EncodeBackwardOutputs grad(context_, weights_, biases_, query_, want_context);
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Network<scalar_t> network(sizes, tensors, bfloat16, true, input);
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
