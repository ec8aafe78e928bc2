// Tiles of transitions, of which both CPU kernels of `encode_context` are made: the network as it
// is read, and the hidden features of a tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bfloat16.h"
#include "encode_context.h"
#include "gemm.h"
#include "nonzeros.h"

namespace mg2l {

// Transitions worked on together, of several contexts where these are short: their features stay in
// the nearest caches. Whole micro-kernels, and whole contexts of 10, 12, 15, 20 or 30 transitions.
constexpr int64_t kTile = 60;
static_assert(kTile % 12 == 0);
constexpr int64_t kTileLanes = 64;  // the same in whole vectors

// A hidden layer as the kernels read it: in accumulation precision, hidden units along the vectors,
// padded with zeros to whole pairs of the widest vectors.
template <typename scalar_t>
struct Layer {
  int64_t inputs, units, padded;
  bool finite;                     // all weights, so that an input of 0 gives 0
  std::vector<scalar_t> weight_t;  // [sets, inputs, padded]
  std::vector<scalar_t> bias;      // [sets, padded]
  // [sets, units, padded units of the layer before]: what gradients flow back through; not for the
  // first layer.
  std::vector<scalar_t> weight;
  // Of both, pairs of rows, where products are of bfloat16.
  std::vector<Pair> pairs_t, pairs;

  template <typename input_t>
  Layer(int64_t sets, int64_t inputs_, int64_t units_, const input_t* weight_, const input_t* bias_,
        bool with_weight)
      : inputs(inputs_), units(units_), padded(padded_width<scalar_t>(units_)) {
    const int64_t padded_inputs = padded_width<scalar_t>(inputs);
    weight_t.assign(sets * inputs * padded, 0);
    bias.assign(sets * padded, 0);
    if (with_weight) weight.assign(sets * units * padded_inputs, 0);
    scalar_t zero = 0;  // x - x is 0, or NaN
    for (int64_t set = 0; set < sets; ++set) {
      for (int64_t h = 0; h < units; ++h) {
        const input_t* row = weight_ + (set * units + h) * inputs;
        bias[set * padded + h] = widen<scalar_t>(bias_[set * units + h]);
        for (int64_t i = 0; i < inputs; ++i) {
          const scalar_t x = widen<scalar_t>(row[i]);
          zero += x - x;
          weight_t[(set * inputs + i) * padded + h] = x;
          if (with_weight) weight[(set * units + h) * padded_inputs + i] = x;
        }
      }
    }
    finite = zero == 0;
  }

  template <int kBytes>
  MG2L_INLINE void round() {
    round<kBytes>(weight_t, inputs, padded, pairs_t);
    if (!weight.empty()) round<kBytes>(weight, units, padded_width<scalar_t>(inputs), pairs);
  }

 private:
  // Matrices [sets, rows, width] to [sets, pairs of rows, width].
  template <int kBytes>
  MG2L_INLINE static void round(const std::vector<scalar_t>& from, int64_t rows, int64_t width,
                                std::vector<Pair>& to) {
    const int64_t sets = static_cast<int64_t>(from.size()) / std::max<int64_t>(rows * width, 1);
    to.resize(sets * pairs_of(rows) * width);
    for (int64_t set = 0; set < sets; ++set) {
      pair_across(from.data() + set * rows * width, width, rows, width,
                  to.data() + set * pairs_of(rows) * width, width);
    }
  }
};

// All hidden layers and the query.
template <typename scalar_t>
struct Network {
  std::vector<Layer<scalar_t>> layers;
  std::vector<scalar_t> query;  // [sets, padded units of the last layer]
  bool bfloat16;                // whether layers multiply what is rounded to it

  template <typename input_t>
  Network(const EncodeSizes& sizes, const EncodeTensors& tensors, bool bfloat16_, bool backward,
          input_t /*input*/)
      : bfloat16(bfloat16_) {
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
    if (!bfloat16) return;
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      if constexpr (kHasPairs<bytes, scalar_t>) {
        for (Layer<scalar_t>& layer : layers) layer.template round<bytes>();
      }
    });
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

// Pairs of a context and an agent, numbered context * A + agent, that meet the same weights: either
// one pair, or as many as a tile holds. Their transitions follow each other.
struct Span {
  int64_t first, stride, pairs;

  int64_t pair(int64_t i) const { return first + i * stride; }
};

// How many pairs a tile holds.
inline int64_t pairs_of_tile(const EncodeSizes& sizes) {
  return std::max<int64_t>(kTile / sizes.transitions, 1);
}

// Calls body(t, row) for a tile of a span's transitions, of which it is [first, first + count).
template <typename input_t, typename scalar_t, typename Body>
MG2L_INLINE void for_rows(const EncodeArrays<input_t, scalar_t>& a, const Span& span, int64_t first,
                          int64_t count, const Body& body) {
  const int64_t transitions = a.sizes.transitions, agents = a.sizes.agents;
  for (int64_t t = 0; t < count;) {
    const int64_t pair = span.pair((first + t) / transitions), from = (first + t) % transitions;
    const int64_t end = std::min(count, t + transitions - from);
    for (int64_t at = from; t < end; ++t, ++at) body(t, a.row(pair / agents, at, pair % agents));
  }
}

// What a layer multiplies where it is rounded: rows of whole vectors.
struct PairTiles {
  int64_t stride_along, stride_across, stride_units;
  std::vector<Pair> along;         // [kTile, pairs of inputs]: inputs, paired along their rows
  std::vector<Pair> across;        // [pairs of kTile, inputs]: the same, paired with the next rows
  std::vector<Pair> grads_across;  // [pairs of kTile, padded]: gradients of the product
  std::vector<Pair> grads_along;   // [kTile, pairs of units]

  PairTiles(int64_t inputs, int64_t units, int64_t padded, bool backward)
      : stride_along(padded_width<float>(pairs_of(inputs))),
        stride_across(padded_width<float>(inputs)),
        stride_units(padded_width<float>(pairs_of(units))),
        along(kTile * stride_along),
        across(backward ? pairs_of(kTile) * stride_across : 0),
        grads_across(backward ? pairs_of(kTile) * padded : 0),
        grads_along(backward ? kTile * stride_units : 0) {}
};

// One thread's memory: a tile of transitions and what is known of their hidden units.
template <typename scalar_t>
struct Scratch {
  std::vector<scalar_t> inputs;                 // [kTile, F]
  std::vector<std::vector<scalar_t>> features;  // of every layer, [kTile, padded]: gelu
  std::vector<std::vector<scalar_t>> slopes;    // its derivative, then the gradient of its input
  std::vector<scalar_t> pooled;                 // [pairs of a tile, padded]
  NonZeros<scalar_t> nonzeros;                  // of the inputs
  std::vector<PairTiles> pairs;                 // of every layer, where products are of bfloat16
  alignas(64) scalar_t logits[kTileLanes];      // query . features
  scalar_t grad_logits[kTile];

  Scratch(const Network<scalar_t>& network, int64_t pairs, bool backward)
      : inputs(kTile * network.layers[0].inputs, 0),
        pooled(pairs * network.last().padded),
        nonzeros(network.layers[0].inputs, kTile) {
    for (const Layer<scalar_t>& layer : network.layers) {
      features.emplace_back(kTile * layer.padded);
      slopes.emplace_back(backward ? kTile * layer.padded : 0);
      if (network.bfloat16) {
        this->pairs.emplace_back(layer.inputs, layer.units, layer.padded, backward);
      }
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

// Copies a tile of a span's transitions into scratch; rows past `count` keep older numbers that are
// never used. Rows lie anywhere in memory: those of the tile after this one are asked for now.
template <int kBytes, typename input_t, typename scalar_t>
MG2L_INLINE void gather(const EncodeArrays<input_t, scalar_t>& a, Scratch<scalar_t>& scratch,
                        const Span& span, int64_t first, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(input_t);
  const int64_t features = a.sizes.features;
  const int64_t pairs = (a.sizes.contexts * a.sizes.agents - 1 - span.first) / span.stride + 1;
  const int64_t left = pairs * a.sizes.transitions - first - count;
  for_rows(a, span, first + count, std::min(count, left),
           [&](int64_t, const input_t* row) MG2L_INLINE_LAMBDA {
             for (int64_t f = 0; f < features; f += kLine) __builtin_prefetch(row + f);
             __builtin_prefetch(row + features - 1);
           });
  for_rows(a, span, first, count, [&](int64_t t, const input_t* row) MG2L_INLINE_LAMBDA {
    scalar_t* to = scratch.inputs.data() + t * features;
    for (int64_t f = 0; f < features; ++f) to[f] = widen<scalar_t>(row[f]);
  });
  scratch.nonzeros.listed = false;
  if (a.network.layers[0].finite && !a.network.bfloat16) {
    scratch.nonzeros.template list<kBytes>(scratch.inputs.data(), features, count);
  }
}

// The product of a layer's inputs, rows from `first` on and two vectors of units from `h` on.
template <int kBytes, typename scalar_t, typename V>
MG2L_INLINE void layer_product(const Network<scalar_t>& network, size_t l, int64_t set,
                               const Scratch<scalar_t>& scratch, int64_t first, int64_t h,
                               const V (&start)[kPair], V (&sum)[kRows<kBytes>][kPair]) {
  const Layer<scalar_t>& layer = network.layers[l];
  const int64_t padded = layer.padded;
  if constexpr (kHasPairs<kBytes, scalar_t>) {
    if (network.bfloat16) {
      const PairTiles& pairs = scratch.pairs[l];
      const int64_t width = pairs_of(layer.inputs);
      multiply<kBytes>(Rows<Pair>{pairs.along.data(), pairs.stride_along, width},
                       layer.pairs_t.data() + set * width * padded, padded, first, h, start, sum);
      return;
    }
  }
  multiply<kBytes>(inputs_of(network, scratch, l),
                   layer.weight_t.data() + set * layer.inputs * padded, padded, first, h, start,
                   sum);
}

// Hidden features of one layer for a tile, with kBackward also the slopes. Of the last layer also
// their product with the query.
template <int kBytes, bool kTanh, bool kBackward, bool kLast, typename scalar_t>
MG2L_INLINE void layer_features(const Network<scalar_t>& network, size_t l, int64_t set,
                                const scalar_t* query, Scratch<scalar_t>& scratch, int64_t count) {
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
  const bool listed = l == 0 && scratch.nonzeros.listed;
  if constexpr (kHasPairs<kBytes, scalar_t>) {
    if (network.bfloat16) {
      PairTiles& pairs = scratch.pairs[l];
      pair_along(inputs.data, inputs.stride, count, inputs.width, pairs.along.data(),
                 pairs.stride_along);
    }
  }
  for (int64_t t = 0; t < count && listed; ++t) {
    multiply_listed<kBytes>(inputs.data + t * inputs.stride, scratch.nonzeros.row(t),
                            scratch.nonzeros.counts[t], weight_t, padded, bias,
                            features + t * padded);
  }
  for (int64_t first = 0; first < count; first += kMicro) {
    V logit[kMicro];
    for (int row = 0; row < kMicro; ++row) logit[row] = V{};
    for (int64_t h = 0; h < padded; h += kPair * kLanes) {
      V sum[kMicro][kPair];
      const V start[kPair] = {load<V>(bias + h), load<V>(bias + h + kLanes)};
      if (listed) {
#pragma GCC unroll 12
        for (int row = 0; row < kMicro; ++row) {
          sum[row][0] = load<V>(features + (first + row) * padded + h);
          sum[row][1] = load<V>(features + (first + row) * padded + h + kLanes);
        }
      } else {
        layer_product<kBytes>(network, l, set, scratch, first, h, start, sum);
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
          store(features + at, y[i]);
          if constexpr (kBackward) store(slopes + at, slope[i]);
          if constexpr (kLast) logit[row + i / kPair] += y[i] * load<V>(query + unit);
        }
      }
    }
    if constexpr (kLast) {
      for (int row = 0; row < kMicro; ++row) {
        scratch.logits[first + row] = sum_lanes<scalar_t, kLanes>(logit[row]);
      }
    }
  }
}

// Hidden features of all layers for a tile.
template <int kBytes, bool kTanh, bool kBackward, typename scalar_t>
MG2L_INLINE void hidden_features(const Network<scalar_t>& network, int64_t set,
                                 const scalar_t* query, Scratch<scalar_t>& scratch, int64_t count) {
  const size_t last = network.layers.size() - 1;
  for (size_t l = 0; l < last; ++l) {
    layer_features<kBytes, kTanh, kBackward, false>(network, l, set, query, scratch, count);
  }
  layer_features<kBytes, kTanh, kBackward, true>(network, last, set, query, scratch, count);
}

// exp(x) of a tile, in place.
template <int kBytes, typename scalar_t>
MG2L_INLINE void exp_tile(scalar_t* x) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t t = 0; t < kTile; t += kLanes) store(x + t, exp_lanes<kLanes>(load<V>(x + t)));
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

}  // namespace mg2l
