// CPU kernel of `encode_context`.
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

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

// What one agent's rows are encoded to, each once: contexts that share their rows gather from here.
template <typename scalar_t>
struct EncodedRows {
  std::vector<int64_t> rows;     // of the context, those that the index holds, ascending
  std::vector<int32_t> slots;    // [B, T]: where in `rows` each transition's is
  int64_t padded = 0;            // width of the last layer's features
  std::vector<scalar_t> memory;  // [U, padded] features, from an aligned address on
  std::vector<scalar_t> logits;  // [U]
  scalar_t* features = nullptr;

  // Lists the rows, unless they are more than half as many as the transitions.
  EncodedRows(const int64_t* index, const EncodeSizes& sizes, int64_t padded_) : padded(padded_) {
    const int64_t count = sizes.contexts * sizes.transitions;
    if (index == nullptr || count >= std::numeric_limits<int32_t>::max()) return;
    std::vector<bool> held(sizes.rows);
    int64_t distinct = 0;
    for (int64_t i = 0; i < count && 2 * distinct <= count; ++i) {
      distinct += held[index[i]] ? 0 : 1;
      held[index[i]] = true;
    }
    if (2 * distinct > count) return;
    std::vector<int32_t> places(sizes.rows);
    for (int64_t row = 0; row < sizes.rows; ++row) {
      places[row] = static_cast<int32_t>(rows.size());
      if (held[row]) rows.push_back(row);
    }
    slots.resize(count);
    for (int64_t i = 0; i < count; ++i) slots[i] = places[index[i]];
    memory.resize(rows.size() * padded + 64 / sizeof(scalar_t));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    features = memory.data() + (64 - address % 64) % 64 / sizeof(scalar_t);
    logits.resize(rows.size());
  }

  bool empty() const { return slots.empty(); }

  // Encodes rows [first, first + count) of one agent.
  template <int kBytes, bool kTanh, typename input_t>
  MG2L_INLINE void encode(const EncodeArrays<input_t, scalar_t>& a, Scratch<scalar_t>& scratch,
                          int64_t agent, int64_t first, int64_t count) {
    const int64_t set = a.sizes.own_weights ? agent : 0;
    const scalar_t* query = a.network.query.data() + set * padded;
    gather<kBytes>(a, scratch, Span{agent, a.sizes.agents, 1}, first, count);
    hidden_features<kBytes, kTanh, false>(a.network, set, query, scratch, count);
    std::copy_n(scratch.features.back().data(), count * padded, features + first * padded);
    std::copy_n(scratch.logits, count, logits.data() + first);
  }

  // What `gather` and `hidden_features` leave in scratch.
  MG2L_INLINE void load_tile(Scratch<scalar_t>& scratch, int64_t at, int64_t count,
                             int64_t ahead) const {
    constexpr int64_t kLine = 64 / sizeof(scalar_t);
    for (int64_t t = 0; t < ahead; ++t) {
      const scalar_t* row = features + slots[at + count + t] * padded;
      for (int64_t h = 0; h < padded; h += kLine) __builtin_prefetch(row + h);
    }
    scalar_t* to = scratch.features.back().data();
    for (int64_t t = 0; t < count; ++t) {
      const int64_t slot = slots[at + t];
      std::copy_n(features + slot * padded, padded, to + t * padded);
      scratch.logits[t] = logits[slot];
    }
  }
};

// Online softmax over the transitions of every pair of a span.
template <int kBytes, bool kTanh, typename input_t, typename scalar_t>
MG2L_INLINE void encode_span(const EncodeArrays<input_t, scalar_t>& a,
                             const EncodedRows<scalar_t>& encoded, Scratch<scalar_t>& scratch,
                             const Span& span, scalar_t* pooled, scalar_t* lse, input_t* weights) {
  const Network<scalar_t>& network = a.network;
  const int64_t set = a.sizes.own_weights ? span.first % a.sizes.agents : 0;
  const int64_t padded = network.last().padded, units = network.last().units;
  const int64_t transitions = a.sizes.transitions, rows = span.pairs * transitions;
  const scalar_t* query = network.query.data() + set * padded;
  const scalar_t* features = scratch.features.back().data();
  // Of each pair; several fit into one tile, and are begun and finished there.
  scalar_t running_max[kTile], running_sum[kTile], rescale[kTile];
  for (int64_t i = 0; i < span.pairs; ++i) {
    running_max[i] = -std::numeric_limits<scalar_t>::infinity();
    running_sum[i] = 0;
  }
  std::fill(scratch.pooled.begin(), scratch.pooled.end(), scalar_t(0));
  for (int64_t first = 0; first < rows; first += kTile) {
    const int64_t count = std::min(kTile, rows - first);
    const int64_t each = span.pairs > 1 ? transitions : count;
    if (encoded.empty()) {
      gather<kBytes>(a, scratch, span, first, count);
      hidden_features<kBytes, kTanh, false>(network, set, query, scratch, count);
    } else {
      const int64_t at = span.first / a.sizes.agents * transitions + first;
      const int64_t left = a.sizes.contexts * transitions - at - count;
      encoded.load_tile(scratch, at, count, std::min(kTile, left));
    }
    for (int64_t i = 0; i < span.pairs; ++i) {
      scalar_t* logits = scratch.logits + i * each;
      scalar_t zero = 0, tile_max = running_max[i];  // x - x is 0, or NaN
      for (int64_t t = 0; t < each; ++t) {
        zero += logits[t] - logits[t];
        tile_max = std::max(tile_max, logits[t]);
      }
      if (weights) {
        input_t* to = weights + span.pair(i) * transitions + first;
        for (int64_t t = 0; t < each; ++t) to[t] = narrow<input_t>(logits[t]);
      }
      rescale[i] = running_sum[i] > 0 ? std::exp(running_max[i] - tile_max) : scalar_t(0);
      running_sum[i] = running_sum[i] * rescale[i] + zero;
      running_max[i] = tile_max;
      for (int64_t t = 0; t < each; ++t) logits[t] -= tile_max;
    }
    exp_tile<kBytes>(scratch.logits);
    for (int64_t i = 0; i < span.pairs; ++i) {
      const scalar_t* now = scratch.logits + i * each;
      scalar_t tile_sum = 0;
      for (int64_t t = 0; t < each; ++t) tile_sum += now[t];
      pool_tile<kBytes>(features + i * each * padded, now, padded, each, rescale[i],
                        scratch.pooled.data() + i * padded);
      running_sum[i] += tile_sum;
    }
  }
  for (int64_t i = 0; i < span.pairs; ++i) {
    const int64_t pair = span.pair(i);
    const scalar_t scale = scalar_t(1) / running_sum[i];  // NaN where a logit is not finite
    const scalar_t* from = scratch.pooled.data() + i * padded;
    for (int64_t h = 0; h < units; ++h) pooled[pair * units + h] = from[h] * scale;
    lse[pair] = running_max[i] + std::log(running_sum[i]);
    if (weights) {
      input_t* to = weights + pair * transitions;
      for (int64_t t = 0; t < transitions; ++t) {
        to[t] = narrow<input_t>(std::exp(widen<scalar_t>(to[t]) - lse[pair]));
      }
    }
  }
}

template <typename input_t, typename scalar_t>
void encode_context_kernel(const EncodeArrays<input_t, scalar_t>& a, scalar_t* pooled,
                           scalar_t* lse, input_t* weights) {
  const EncodeSizes& sizes = a.sizes;
  EncodedRows<scalar_t> encoded(a.index, sizes, a.network.last().padded);
  // Calls body(scratch, bytes, tanh, i) for all i below a count, in parallel.
  const auto run = [&](int64_t count, const auto& body) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch<scalar_t> scratch(a.network, pairs_of_tile(sizes), false);
      run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
        for (int64_t i = begin; i < end; ++i) {
          if (a.tanh_gelu) {
            body(scratch, bytes, std::true_type(), i);
          } else {
            body(scratch, bytes, std::false_type(), i);
          }
        }
      });
    });
  };
  // Pools all pairs `first + i * stride` for i below `pairs`.
  const auto pool = [&](int64_t first, int64_t stride, int64_t pairs) {
    const int64_t each = pairs_of_tile(sizes);
    run((pairs + each - 1) / each, [&](auto& scratch, auto bytes, auto tanh,
                                       int64_t tile) MG2L_INLINE_LAMBDA {
      const Span span{first + tile * each * stride, stride, std::min(each, pairs - tile * each)};
      encode_span<bytes, tanh>(a, encoded, scratch, span, pooled, lse, weights);
    });
  };
  if (encoded.empty()) {
    if (sizes.own_weights) {
      for (int64_t agent = 0; agent < sizes.agents; ++agent) {
        pool(agent, sizes.agents, sizes.contexts);
      }
    } else {
      pool(0, 1, sizes.contexts * sizes.agents);
    }
    return;
  }
  const auto rows = static_cast<int64_t>(encoded.rows.size());
  EncodeSizes once = sizes;  // all rows as one context
  once.contexts = 1;
  once.transitions = rows;
  const EncodeArrays<input_t, scalar_t> each{once, a.context, encoded.rows.data(), a.network,
                                             a.tanh_gelu};
  for (int64_t agent = 0; agent < sizes.agents; ++agent) {
    run((rows + kTile - 1) / kTile,
        [&](auto& scratch, auto bytes, auto tanh, int64_t tile) MG2L_INLINE_LAMBDA {
          encoded.template encode<bytes, tanh>(each, scratch, agent, tile * kTile,
                                               std::min(kTile, rows - tile * kTile));
        });
    pool(agent, sizes.agents, sizes.contexts);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> encode_context_cpu(
    const Tensor& context_, const std::vector<Tensor>& weights_, const std::vector<Tensor>& biases_,
    const Tensor& query_, const std::optional<Tensor>& index_, bool tanh_gelu, bool bfloat16,
    bool return_weights) {
  const EncodeSizes sizes =
      check_encode_context(context_, weights_, biases_, query_, index_, bfloat16);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  EncodeOutputs results(context_, sizes, return_weights);
  for_dtype(context_.scalar_type(), [&](auto input, auto zero) {
    using input_t = decltype(input);
    using scalar_t = decltype(zero);
    const int64_t* index = data_or_null<int64_t>(tensors.index);
    if (index) check_rows(index, sizes.contexts * sizes.transitions, sizes.rows);
    const Network<scalar_t> network(sizes, tensors, bfloat16, false, input);
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
