// CPU kernel of `pairwise_lse`.
//
// Scores are made a tile of queries and keys at a time, and used up at once.
#include <tuple>

#include "pairwise_tiles.h"

namespace mg2l {
namespace {

// What is known of a query's negatives so far, a lane for every kLanes-th key.
template <typename V>
struct Tally {
  V running_max, running_sum, sum, count, above;
};

template <int kBytes, bool kAll, typename scalar_t, typename V>
MG2L_INLINE void tally_tile(const PairArrays<scalar_t>& a, const scalar_t* scores,
                            const scalar_t* negative, scalar_t positive, Tally<V>& tally) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kVectors = kKeys / kLanes;
  const V one = splat<V>(scalar_t(1)), lowest = splat<V>(kLowest<scalar_t>);
  const V high = splat<V>(a.clip), low = -high, own = splat<V>(positive);
  V clipped[kVectors], max = tally.running_max;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const V score = load<V>(scores + v * kLanes);
    clipped[v] = score;
    if (a.clips) {
      clipped[v] = clipped[v] < low ? low : clipped[v];
      clipped[v] = clipped[v] > high ? high : clipped[v];
    }
    if constexpr (kAll) {
      tally.sum += score;
      tally.count += one;
      tally.above += score > own ? one : V{};
    } else {
      const V is = load<V>(negative + v * kLanes);
      clipped[v] = is > V{} ? clipped[v] : lowest;
      tally.sum += is > V{} ? score : V{};
      tally.count += is;
      tally.above += score > own ? is : V{};
    }
    max = clipped[v] > max ? clipped[v] : max;
  }
  V exp_sum = tally.running_sum * exp_lanes<kLanes>(tally.running_max - max);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const V e = exp_lanes<kLanes>(clipped[v] - max);
    if constexpr (kAll) {
      exp_sum += e;
    } else {
      exp_sum += e * load<V>(negative + v * kLanes);
    }
  }
  tally.running_max = max;
  tally.running_sum = exp_sum;
}

template <typename scalar_t>
struct PairResults {
  scalar_t *lse, *lse_negatives, *mean, *positive;
  int64_t *negatives, *rank;
};

// log(exp a + exp b); NaN where one of them is.
template <typename scalar_t>
scalar_t log_add(scalar_t a, scalar_t b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  const scalar_t max = std::max(a, b), min = std::min(a, b);
  return std::isinf(max) ? max : max + std::log1p(std::exp(min - max));
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void finish(const PairArrays<scalar_t>& a,
                        const Tally<Vec<scalar_t, kBytes / sizeof(scalar_t)>>& tally,
                        scalar_t positive, int64_t at, const PairResults<scalar_t>& out) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  scalar_t max = kLowest<scalar_t>;
  for (int lane = 0; lane < kLanes; ++lane) max = std::max<scalar_t>(max, tally.running_max[lane]);
  const V scaled = tally.running_sum * exp_lanes<kLanes>(tally.running_max - splat<V>(max));
  const scalar_t exp_sum = sum_lanes<scalar_t, kLanes>(scaled);
  const scalar_t count = sum_lanes<scalar_t, kLanes>(tally.count);
  const scalar_t sum = sum_lanes<scalar_t, kLanes>(tally.sum);
  // x - x is 0, or NaN where x is not finite: so are then the results, and a guard against
  // losses that are not finite sees it.
  const scalar_t lse =
      (count > 0 ? max + std::log(exp_sum) : -std::numeric_limits<scalar_t>::infinity()) +
      (sum - sum);
  out.lse_negatives[at] = lse;
  out.lse[at] = log_add(lse, a.clipped(positive) + (positive - positive));
  out.mean[at] = sum / std::max(count, scalar_t(1));
  out.positive[at] = positive;
  out.negatives[at] = static_cast<int64_t>(count);
  out.rank[at] = static_cast<int64_t>(sum_lanes<scalar_t, kLanes>(tally.above));
}

template <int kBytes, bool kGaussian, typename scalar_t>
MG2L_INLINE void score_queries(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                               PairScratch<scalar_t>& scratch, int64_t group, int64_t first,
                               int64_t count, const PairResults<scalar_t>& out) {
  using V = Vec<scalar_t, kBytes / sizeof(scalar_t)>;
  take_queries(a, scratch, group, first, count);
  Tally<V> tally[kQueries];
  scalar_t positive[kQueries];
  for (int64_t i = 0; i < count; ++i) {
    tally[i] = {splat<V>(kLowest<scalar_t>), V{}, V{}, V{}, V{}};
    const int64_t key = a.positive[group * a.sizes.queries + first + i];
    positive[i] =
        score_one<kGaussian>(a, keys, scratch.queries.data() + i * keys.width, group, key);
  }
  for (int64_t tile = 0; tile < keys.tiles; ++tile) {
    score_tile<kBytes, kGaussian>(a, keys, scratch, group * keys.tiles + tile, count);
    for (int64_t i = 0; i < count; ++i) {
      const scalar_t* scores = scratch.scores + i * kKeys;
      if (mark_negatives(a, group, first + i, tile * kKeys, scratch.negative)) {
        tally_tile<kBytes, true>(a, scores, scratch.negative, positive[i], tally[i]);
      } else {
        tally_tile<kBytes, false>(a, scores, scratch.negative, positive[i], tally[i]);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    finish<kBytes>(a, tally[i], positive[i], group * a.sizes.queries + first + i, out);
  }
}

template <typename scalar_t>
void pairwise_lse_kernel(const PairArrays<scalar_t>& a, const PairResults<scalar_t>& out) {
  const PackedKeys<scalar_t> keys(a, false);
  const int64_t blocks = (a.sizes.queries + kQueries - 1) / kQueries;
  const int64_t work = std::max<int64_t>(kQueries * a.sizes.keys * (a.sizes.width + 16), 1);
  const int64_t grain = std::max<int64_t>((int64_t{1} << 19) / work, 1);
  torch::stable::parallel_for(0, a.sizes.groups * blocks, grain, [&](int64_t begin, int64_t end) {
    PairScratch<scalar_t> scratch(keys, false);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t group = block / blocks, first = block % blocks * kQueries;
        const int64_t count = std::min(kQueries, a.sizes.queries - first);
        if (keys.gaussian()) {
          score_queries<bytes, true>(a, keys, scratch, group, first, count, out);
        } else {
          score_queries<bytes, false>(a, keys, scratch, group, first, count, out);
        }
      }
    });
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pairwise_lse_cpu(
    const Tensor& queries, const Tensor& keys, const Tensor& positive, double scale,
    const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip) {
  const PairSizes sizes =
      check_pairwise_lse(queries, keys, positive, scale, std, query_labels, key_labels, mask, clip);
  const PairTensors tensors(queries, keys, positive, std, query_labels, key_labels, mask);
  check_positive(sizes, tensors.positive);
  PairOutputs r = pair_outputs(queries, sizes);
  for_floating(queries.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    pairwise_lse_kernel<scalar_t>(
        pair_arrays<scalar_t>(sizes, tensors, scale, clip),
        {data<scalar_t>(r.lse), data<scalar_t>(r.lse_negatives), data<scalar_t>(r.mean),
         data<scalar_t>(r.positive_score), data<int64_t>(r.negatives), data<int64_t>(r.rank)});
  });
  return {r.lse, r.lse_negatives, r.mean, r.positive_score, r.negatives, r.rank};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("pairwise_lse", TORCH_BOX(&mg2l::pairwise_lse_cpu));
}
