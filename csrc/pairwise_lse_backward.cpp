// CPU kernel of `pairwise_lse_backward`: makes the scores of each tile again.
#include <tuple>

#include "pairwise_tiles.h"

namespace mg2l {
namespace {

constexpr int64_t kParts = 8;  // partial sums of the keys' gradients, for any number of threads

template <typename scalar_t>
struct PairGradients {
  const scalar_t *lse, *lse_negatives;  // results of the forward pass
  const int64_t* negatives;
  const scalar_t *grad_lse, *grad_lse_negatives, *grad_mean,
      *grad_positive;              // gradients of the results
  scalar_t *queries, *keys, *std;  // to be written
};

// Gradients of one query's scores of a tile, in place of the scores.
template <int kBytes, bool kAll, typename scalar_t>
MG2L_INLINE void score_gradients(const PairArrays<scalar_t>& a, scalar_t* scores,
                                 const scalar_t* negative, scalar_t lse, scalar_t weight,
                                 scalar_t mean) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const V shift = splat<V>(lse), w = splat<V>(weight), m = splat<V>(mean);
  const V high = splat<V>(a.clip), low = -high;
#pragma GCC unroll 4
  for (int64_t k = 0; k < kKeys; k += kLanes) {
    const V score = load<V>(scores + k);
    V gradient;
    if (a.clips) {
      V bounded = score < low ? low : score;
      bounded = bounded > high ? high : bounded;
      const V within = w * exp_lanes<kLanes>(bounded - shift);
      gradient = (bounded == score ? within : V{}) + m;
    } else {
      gradient = w * exp_lanes<kLanes>(score - shift) + m;
    }
    if constexpr (!kAll) gradient = load<V>(negative + k) > V{} ? gradient : V{};
    store(scores + k, gradient);
  }
}

// Gradients of a tile's scores, rows past `count` being 0.
template <int kBytes, bool kGaussian, typename scalar_t>
MG2L_INLINE void tile_gradients(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                                const PairGradients<scalar_t>& g, PairScratch<scalar_t>& scratch,
                                int64_t group, int64_t first, int64_t count, int64_t tile) {
  score_tile<kBytes, kGaussian>(a, keys, scratch, group * keys.tiles + tile, count);
  const int64_t first_key = tile * kKeys;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = group * a.sizes.queries + first + i;
    scalar_t* scores = scratch.scores + i * kKeys;
    const scalar_t negatives = g.lse_negatives[at];
    // exp(s - lse) = exp(s - lse_negatives) exp(lse_negatives - lse)
    const scalar_t weight =
        g.grad_lse_negatives[at] + g.grad_lse[at] * std::exp(negatives - g.lse[at]);
    const scalar_t mean =
        g.grad_mean[at] / static_cast<scalar_t>(std::max<int64_t>(g.negatives[at], 1));
    const int64_t own = a.positive[at] - first_key;
    const scalar_t positive = own >= 0 && own < kKeys ? scores[own] : scalar_t(0);
    if (mark_negatives(a, group, first + i, first_key, scratch.negative)) {
      score_gradients<kBytes, true>(a, scores, scratch.negative, negatives, weight, mean);
    } else {
      score_gradients<kBytes, false>(a, scores, scratch.negative, negatives, weight, mean);
    }
    if (own >= 0 && own < kKeys) {
      const scalar_t own_weight = std::exp(a.clipped(positive) - g.lse[at]);
      scores[own] =
          g.grad_positive[at] + (a.within(positive) ? g.grad_lse[at] * own_weight : scalar_t(0));
    }
  }
}

// What the gradients of the keys sum over the queries: q, and of Gaussians q^2 as well, about the
// centre of the keys.
template <typename scalar_t>
MG2L_INLINE void take_features(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                               PairScratch<scalar_t>& scratch, int64_t group, int64_t first,
                               int64_t count) {
  const scalar_t* from = a.queries + (group * a.sizes.queries + first) * keys.width;
  const scalar_t* centre = keys.gaussian() ? keys.centre.data() + group * keys.width : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    scalar_t* to = scratch.features.data() + i * keys.features;
    for (int64_t d = 0; d < keys.width; ++d) {
      const scalar_t q = from[i * keys.width + d] - (centre ? centre[d] : scalar_t(0));
      to[d] = q;
      if (centre) to[keys.padded + d] = q * q;
    }
  }
  std::fill(scratch.sums.begin(), scratch.sums.end(), scalar_t(0));
}

// A block of queries: their own gradients, and their part of the keys'. `key_sums` is [tiles,
// kKeys, features] and `score_sums` [tiles, kKeys], the latter for Gaussians only.
template <int kBytes, bool kGaussian, typename scalar_t>
MG2L_INLINE void block_backward(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                                const PairGradients<scalar_t>& g, PairScratch<scalar_t>& scratch,
                                int64_t group, int64_t first, int64_t count, scalar_t* key_sums,
                                scalar_t* score_sums) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  take_queries(a, scratch, group, first, count);
  take_features(a, keys, scratch, group, first, count);
  const Rows<scalar_t> gradients{scratch.scores, kKeys, kKeys};
  for (int64_t tile = 0; tile < keys.tiles; ++tile) {
    tile_gradients<kBytes, kGaussian>(a, keys, g, scratch, group, first, count, tile);
    const scalar_t* rows = keys.rows.data() + (group * keys.tiles + tile) * kKeys * keys.features;
    for (int64_t row = 0; row < count; row += kMicro) {
      for (int64_t h = 0; h < keys.features; h += kPair * kLanes) {
        V sum[kMicro][kPair];
        const V zero[kPair] = {V{}, V{}};
        multiply<kBytes>(gradients, rows, keys.features, row, h, zero, sum);
        for (int r = 0; r < kMicro; ++r) {
          scalar_t* to = scratch.sums.data() + (row + r) * keys.features + h;
          store(to, load<V>(to) + sum[r][0]);
          store(to + kLanes, load<V>(to + kLanes) + sum[r][1]);
        }
      }
    }
    add_product_t<kBytes>(gradients, scratch.features.data(), keys.features, count,
                          key_sums + tile * kKeys * keys.features);
    if constexpr (kGaussian) {
      for (int64_t k = 0; k < kKeys; k += kLanes) {
        V sum = load<V>(score_sums + tile * kKeys + k);
        for (int64_t i = 0; i < count; ++i) sum += load<V>(scratch.scores + i * kKeys + k);
        store(score_sums + tile * kKeys + k, sum);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    scalar_t* to = g.queries + (group * a.sizes.queries + first + i) * keys.width;
    const scalar_t* sums = scratch.sums.data() + i * keys.features;
    const scalar_t* q = scratch.features.data() + i * keys.features;
    for (int64_t d = 0; d < keys.width; ++d) {
      to[d] = a.scale * (kGaussian ? sums[keys.padded + d] - q[d] * sums[d] : sums[d]);
    }
  }
}

// The gradients of a key from what was summed for it.
template <typename scalar_t>
void key_gradients(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                   const PairGradients<scalar_t>& g, int64_t group, int64_t key,
                   const scalar_t* sums, scalar_t score_sum) {
  const int64_t at = (group * a.sizes.keys + key) * keys.width;
  for (int64_t d = 0; d < keys.width; ++d) {
    if (!keys.gaussian()) {
      g.keys[at + d] = a.scale * sums[d];
      continue;
    }
    const scalar_t inverse = scalar_t(1) / a.std[at + d];
    const scalar_t mean = a.keys[at + d] - keys.centre[group * keys.width + d];
    const scalar_t square =
        sums[keys.padded + d] - scalar_t(2) * mean * sums[d] + mean * mean * score_sum;
    g.keys[at + d] = a.scale * inverse * inverse * (sums[d] - mean * score_sum);
    g.std[at + d] = a.scale * inverse * (inverse * inverse * square - score_sum);
  }
}

// Parts of the queries are summed in order, and the parts added in order: the same however many
// threads there are.
template <typename scalar_t>
void pairwise_lse_backward_kernel(const PairArrays<scalar_t>& a, const PairGradients<scalar_t>& g) {
  const PackedKeys<scalar_t> keys(a, true);
  const int64_t groups = a.sizes.groups;
  const int64_t blocks = (a.sizes.queries + kQueries - 1) / kQueries;
  const int64_t parts =
      std::max<int64_t>(std::min(blocks, (kParts + groups - 1) / std::max<int64_t>(groups, 1)), 1);
  const int64_t key_size = keys.tiles * kKeys * keys.features;
  const int64_t score_size = keys.gaussian() ? keys.tiles * kKeys : 0;
  std::vector<scalar_t> partial(groups * parts * (key_size + score_size), 0);
  const auto part_of = [&](int64_t group, int64_t part) {
    return partial.data() + (group * parts + part) * (key_size + score_size);
  };
  torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
    PairScratch<scalar_t> scratch(keys, true);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t group = index / parts, part = index % parts;
        scalar_t* sums = part_of(group, part);
        for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
          const int64_t first = block * kQueries;
          const int64_t count = std::min(kQueries, a.sizes.queries - first);
          if (keys.gaussian()) {
            block_backward<bytes, true>(a, keys, g, scratch, group, first, count, sums,
                                        sums + key_size);
          } else {
            block_backward<bytes, false>(a, keys, g, scratch, group, first, count, sums,
                                         sums + key_size);
          }
        }
      }
    });
  });
  for (int64_t group = 0; group < groups; ++group) {
    scalar_t* sums = part_of(group, 0);
    for (int64_t part = 1; part < parts; ++part) {
      const scalar_t* other = part_of(group, part);
      for (int64_t i = 0; i < key_size + score_size; ++i) sums[i] += other[i];
    }
    for (int64_t key = 0; key < a.sizes.keys; ++key) {
      key_gradients(a, keys, g, group, key, sums + key * keys.features,
                    keys.gaussian() ? sums[key_size + key] : scalar_t(0));
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pairwise_lse_backward_cpu(
    const Tensor& grad_lse_, const Tensor& grad_lse_negatives_, const Tensor& grad_mean_,
    const Tensor& grad_positive_, const Tensor& queries, const Tensor& keys, const Tensor& positive,
    double scale, const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip, const Tensor& lse_, const Tensor& lse_negatives_,
    const Tensor& negatives_) {
  const PairSizes sizes = check_pairwise_lse_backward(
      grad_lse_, grad_lse_negatives_, grad_mean_, grad_positive_, queries, keys, positive, scale,
      std, query_labels, key_labels, mask, clip, lse_, lse_negatives_, negatives_);
  const PairTensors tensors(queries, keys, positive, std, query_labels, key_labels, mask);
  check_positive(sizes, tensors.positive);
  const Tensor grad_lse = as_contiguous(grad_lse_),
               grad_lse_negatives = as_contiguous(grad_lse_negatives_);
  const Tensor grad_mean = as_contiguous(grad_mean_), grad_positive = as_contiguous(grad_positive_);
  const Tensor lse = as_contiguous(lse_), lse_negatives = as_contiguous(lse_negatives_);
  const Tensor negatives = as_contiguous(negatives_);
  PairBackwardOutputs grad(queries, keys, std.has_value());
  if (sizes.queries == 0) return {grad.queries, grad.keys, grad.std};
  for_floating(queries.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    pairwise_lse_backward_kernel<scalar_t>(
        pair_arrays<scalar_t>(sizes, tensors, scale, clip),
        {data<scalar_t>(lse), data<scalar_t>(lse_negatives), data<int64_t>(negatives),
         data<scalar_t>(grad_lse), data<scalar_t>(grad_lse_negatives), data<scalar_t>(grad_mean),
         data<scalar_t>(grad_positive), data<scalar_t>(grad.queries), data<scalar_t>(grad.keys),
         std ? data<scalar_t>(grad.std) : nullptr});
  });
  return {grad.queries, grad.keys, grad.std};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("pairwise_lse_backward", TORCH_BOX(&mg2l::pairwise_lse_backward_cpu));
}
