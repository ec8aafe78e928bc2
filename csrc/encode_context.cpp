// CPU kernel of `encode_context`.
#include <tuple>

#include "encode_tiles.h"

namespace mg2l {
namespace {

// pooled[h] = rescale * pooled[h] + sum over the tile of weight[t] * features[t, h].
template <int kBytes, typename scalar_t>
MG2L_INLINE void pool_tile(const scalar_t* features, const scalar_t* weights, int64_t padded,
                           int64_t count, scalar_t rescale, scalar_t* pooled) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  constexpr int kBlock = 4;
  for (int64_t h = 0; h < padded; h += kBlock * kLanes) {
    V sum[kBlock];
#pragma GCC unroll 4
    for (int v = 0; v < kBlock; ++v) {
      sum[v] = h + v * kLanes < padded ? load<V>(pooled + h + v * kLanes) * splat<V>(rescale) : V{};
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
  scalar_t running_max = -std::numeric_limits<scalar_t>::infinity(), running_sum = 0;
  std::fill(scratch.pooled.begin(), scratch.pooled.end(), scalar_t(0));
  for (int64_t first = 0; first < a.sizes.transitions; first += kTile) {
    const int64_t count = std::min(kTile, a.sizes.transitions - first);
    gather(a, scratch, context, agent, first, count);
    hidden_features<kBytes, kTanh, false>(network, set, query, query, scratch, count);
    scalar_t zero = 0;  // x - x is 0, or NaN
    for (int64_t t = 0; t < count; ++t) zero += scratch.logits[t] - scratch.logits[t];
    if (zero != 0) {
      running_sum = zero;
      break;
    }
    scalar_t tile_max = running_max;
    for (int64_t t = 0; t < count; ++t) tile_max = std::max(tile_max, scratch.logits[t]);
    if (weights) {
      for (int64_t t = 0; t < count; ++t) weights[first + t] = narrow<input_t>(scratch.logits[t]);
    }
    const scalar_t rescale = running_sum > 0 ? std::exp(running_max - tile_max) : scalar_t(0);
    exp_tile<kBytes>(scratch.logits, tile_max);
    scalar_t tile_sum = 0;
    for (int64_t t = 0; t < count; ++t) tile_sum += scratch.logits[t];
    pool_tile<kBytes>(scratch.features.back().data(), scratch.logits, padded, count, rescale,
                      scratch.pooled.data());
    running_sum = running_sum * rescale + tile_sum;
    running_max = tile_max;
  }
  const int64_t pair = context * a.sizes.agents + agent;
  const scalar_t scale = scalar_t(1) / running_sum;  // NaN where a logit is not finite
  for (int64_t h = 0; h < units; ++h) pooled[pair * units + h] = scratch.pooled[h] * scale;
  lse[pair] = running_max + std::log(running_sum);
  if (weights) {
    for (int64_t t = 0; t < a.sizes.transitions; ++t) {
      weights[t] = narrow<input_t>(std::exp(widen<scalar_t>(weights[t]) - lse[pair]));
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

}  // namespace

std::tuple<Tensor, Tensor, Tensor> encode_context_cpu(const Tensor& context_,
                                                      const std::vector<Tensor>& weights_,
                                                      const std::vector<Tensor>& biases_,
                                                      const Tensor& query_,
                                                      const std::optional<Tensor>& index_,
                                                      bool tanh_gelu, bool return_weights) {
  const EncodeSizes sizes = check_encode_context(context_, weights_, biases_, query_, index_);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  EncodeOutputs results(context_, sizes, return_weights);
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Network<scalar_t> network(sizes, tensors, false, input);
    const EncodeArrays<input_t, scalar_t> arrays{sizes, data<input_t>(tensors.context), index,
                                                 network, tanh_gelu};
    encode_context_kernel(arrays, data<scalar_t>(results.pooled), data<scalar_t>(results.lse),
                          return_weights ? data<input_t>(results.weights) : nullptr);
  });
  return {results.pooled, results.lse, results.weights};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("encode_context", TORCH_BOX(&mg2l::encode_context_cpu));
}
