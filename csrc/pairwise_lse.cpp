// CPU kernels of `pairwise_lse` and `pairwise_lse_backward`.
//
// Scores are made a tile of queries and keys at a time, and used up at once; the backward pass
// makes them again. Keys lie along the vectors.
#include "pairwise_lse.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "gemm.h"

namespace mg2l {
namespace {

constexpr int64_t kQueries = 48;  // queries of a tile
constexpr int64_t kKeys = 64;     // keys of a tile
constexpr int64_t kParts = 8;     // partial sums of the keys' gradients, for any number of threads
static_assert(kQueries % 12 == 0 && kKeys % 32 == 0);

// Below every score that counts, above -inf: differences of it are numbers.
template <typename scalar_t>
constexpr scalar_t kLowest = std::numeric_limits<scalar_t>::lowest() / 4;

template <typename scalar_t>
struct PairArrays {
  PairSizes sizes;
  scalar_t scale;
  bool clips;
  scalar_t clip;
  const scalar_t *queries, *keys, *std;  // [G, B, D], [G, M, D] twice, the last or null
  const int64_t *positive, *query_labels, *key_labels;
  const uint8_t* mask;

  scalar_t clipped(scalar_t score) const {
    return clips ? std::min(std::max(score, -clip), clip) : score;
  }
  bool within(scalar_t score) const { return !clips || (score >= -clip && score <= clip); }
};

// The keys as the kernels read them. Of a Gaussian key with mean m and deviation s the score is
// offset - scale / 2 sum (q / s - m / s)^2.
template <typename scalar_t>
struct PackedKeys {
  int64_t tiles, width, padded, features;
  std::vector<scalar_t> columns;  // [G, tiles, width, kKeys]: keys, or their deviations' inverses
  std::vector<scalar_t> means;    // the same of m / s; Gaussian only
  std::vector<scalar_t> offsets;  // [G, tiles, kKeys]; Gaussian only
  std::vector<scalar_t> rows;     // [G, tiles, kKeys, features]: what gradients of queries sum
  std::vector<scalar_t> centre;   // [G, width]: mean of the keys, so that their squares are small

  bool gaussian() const { return !means.empty(); }

  PackedKeys(const PairArrays<scalar_t>& a, bool backward)
      : tiles((a.sizes.keys + kKeys - 1) / kKeys),
        width(a.sizes.width),
        padded(padded_width<scalar_t>(width)),
        features(a.std ? 2 * padded : padded) {
    const int64_t groups = a.sizes.groups, all = groups * tiles;
    columns.assign(all * width * kKeys, 0);
    if (a.std) {
      means.assign(all * width * kKeys, 0);
      offsets.assign(all * kKeys, 0);
      if (backward) find_centre(a);
    }
    if (backward) rows.assign(all * kKeys * features, 0);
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t key = 0; key < a.sizes.keys; ++key) pack(a, group, key, backward);
    }
  }

  void find_centre(const PairArrays<scalar_t>& a) {
    centre.assign(a.sizes.groups * width, 0);
    for (int64_t group = 0; group < a.sizes.groups; ++group) {
      scalar_t* to = centre.data() + group * width;
      const scalar_t* keys = a.keys + group * a.sizes.keys * width;
      for (int64_t key = 0; key < a.sizes.keys; ++key) {
        for (int64_t d = 0; d < width; ++d) to[d] += keys[key * width + d];
      }
      for (int64_t d = 0; d < width; ++d) to[d] /= static_cast<scalar_t>(a.sizes.keys);
    }
  }

  void pack(const PairArrays<scalar_t>& a, int64_t group, int64_t key, bool backward) {
    const int64_t tile = group * tiles + key / kKeys, lane = key % kKeys;
    const scalar_t* from = a.keys + (group * a.sizes.keys + key) * width;
    scalar_t* column = columns.data() + tile * width * kKeys + lane;
    scalar_t* row = backward ? rows.data() + (tile * kKeys + lane) * features : nullptr;
    if (a.std == nullptr) {
      for (int64_t d = 0; d < width; ++d) column[d * kKeys] = from[d];
      if (row) std::copy(from, from + width, row);
      return;
    }
    const scalar_t* std = a.std + (group * a.sizes.keys + key) * width;
    scalar_t* mean = means.data() + tile * width * kKeys + lane;
    double logs = 0;
    for (int64_t d = 0; d < width; ++d) {
      const scalar_t inverse = scalar_t(1) / std[d];
      column[d * kKeys] = inverse;
      mean[d * kKeys] = from[d];
      logs += std::log(static_cast<double>(std[d]));
      if (row) {
        row[d] = inverse * inverse;
        row[padded + d] = (from[d] - centre[group * width + d]) * inverse * inverse;
      }
    }
    constexpr double kHalfLog2Pi = 0.91893853320467274;
    offsets[tile * kKeys + lane] =
        static_cast<scalar_t>(a.scale * (-logs - static_cast<double>(width) * kHalfLog2Pi));
  }
};

// What one thread works on.
template <typename scalar_t>
struct PairScratch {
  std::vector<scalar_t> queries;   // [kQueries, width], times the scale unless Gaussian
  std::vector<scalar_t> features;  // [kQueries, features]: what gradients of keys sum
  std::vector<scalar_t> sums;      // [kQueries, features]: gradients of the queries' features
  alignas(64) scalar_t scores[kQueries * kKeys];
  alignas(64) scalar_t negative[kKeys];  // 1 where a key is a negative of the query at hand

  PairScratch(const PackedKeys<scalar_t>& keys, bool backward)
      : queries(kQueries * keys.width, 0),
        features(backward ? kQueries * keys.features : 0, 0),
        sums(backward ? kQueries * keys.features : 0, 0) {}
};

template <typename scalar_t>
MG2L_INLINE void take_queries(const PairArrays<scalar_t>& a, PairScratch<scalar_t>& scratch,
                              int64_t group, int64_t first, int64_t count) {
  const scalar_t* from = a.queries + (group * a.sizes.queries + first) * a.sizes.width;
  const scalar_t factor = a.std ? scalar_t(1) : a.scale;
  for (int64_t i = 0; i < count * a.sizes.width; ++i) scratch.queries[i] = factor * from[i];
}

// sum over d of ((q_d - m_d) / s_d)^2 for kRows queries and two vectors of keys.
template <int kBytes, typename scalar_t, typename V>
MG2L_INLINE void distances(const Rows<scalar_t>& rows, const scalar_t* inverse,
                           const scalar_t* mean, int64_t first, int64_t h,
                           V (&sum)[kRows<kBytes>][kPair]) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
#pragma GCC unroll 12
  for (int row = 0; row < kMicro; ++row) sum[row][0] = sum[row][1] = V{};
  for (int64_t d = 0; d < rows.width; ++d) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kPair; ++pair) {
      const V s = load<V>(inverse + d * kKeys + h + pair * kLanes);
      const V m = load<V>(mean + d * kKeys + h + pair * kLanes);
#pragma GCC unroll 12
      for (int row = 0; row < kMicro; ++row) {
        const V error = (splat<V>(rows.data[(first + row) * rows.stride + d]) - m) * s;
        sum[row][pair] += error * error;
      }
    }
  }
}

// Scores of a tile of queries against a tile of keys.
template <int kBytes, bool kGaussian, typename scalar_t>
MG2L_INLINE void score_tile(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                            PairScratch<scalar_t>& scratch, int64_t tile, int64_t count) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  const scalar_t* columns = keys.columns.data() + tile * keys.width * kKeys;
  const Rows<scalar_t> rows{scratch.queries.data(), keys.width, keys.width};
  for (int64_t first = 0; first < count; first += kMicro) {
    for (int64_t h = 0; h < kKeys; h += kPair * kLanes) {
      V sum[kMicro][kPair];
      if constexpr (kGaussian) {
        distances<kBytes>(rows, columns, keys.means.data() + tile * keys.width * kKeys, first, h,
                          sum);
        const V half = splat<V>(scalar_t(-0.5) * a.scale);
        for (int pair = 0; pair < kPair; ++pair) {
          const V offset = load<V>(keys.offsets.data() + tile * kKeys + h + pair * kLanes);
          for (int row = 0; row < kMicro; ++row) sum[row][pair] = sum[row][pair] * half + offset;
        }
      } else {
        const V zero[kPair] = {V{}, V{}};
        multiply<kBytes>(rows, columns, kKeys, first, h, zero, sum);
      }
      for (int row = 0; row < kMicro; ++row) {
        scalar_t* to = scratch.scores + (first + row) * kKeys + h;
        store(to, sum[row][0]);
        store(to + kLanes, sum[row][1]);
      }
    }
  }
}

// The score of one query and key, by the same operations in the same order as in a tile: a copy of
// the positive among the negatives must tie with it.
template <bool kGaussian, typename scalar_t>
MG2L_INLINE scalar_t score_one(const PairArrays<scalar_t>& a, const PackedKeys<scalar_t>& keys,
                               const scalar_t* query, int64_t group, int64_t key) {
  const int64_t tile = group * keys.tiles + key / kKeys, lane = key % kKeys;
  const scalar_t* column = keys.columns.data() + tile * keys.width * kKeys + lane;
  scalar_t sum = 0;
  if constexpr (kGaussian) {
    const scalar_t* mean = keys.means.data() + tile * keys.width * kKeys + lane;
    for (int64_t d = 0; d < keys.width; ++d) {
      const scalar_t error = (query[d] - mean[d * kKeys]) * column[d * kKeys];
      sum += error * error;
    }
    return sum * (scalar_t(-0.5) * a.scale) + keys.offsets[tile * kKeys + lane];
  } else {
    for (int64_t d = 0; d < keys.width; ++d) sum += query[d] * column[d * kKeys];
    return sum;
  }
}

// Marks the negatives of a query among the keys of a tile. Returns whether all of them are.
template <typename scalar_t>
MG2L_INLINE bool mark_negatives(const PairArrays<scalar_t>& a, int64_t group, int64_t query,
                                int64_t first_key, scalar_t* negative) {
  const int64_t at = group * a.sizes.queries + query;
  const int64_t positive = a.positive[at] - first_key;
  const int64_t count = std::min(kKeys, a.sizes.keys - first_key);
  const bool own = positive >= 0 && positive < kKeys;
  if (!own && count == kKeys && a.query_labels == nullptr && a.mask == nullptr) return true;
  for (int64_t k = 0; k < kKeys; ++k) negative[k] = k < count ? scalar_t(1) : scalar_t(0);
  if (a.query_labels) {
    const int64_t label = a.query_labels[at];
    const int64_t* labels = a.key_labels + group * a.sizes.keys + first_key;
    for (int64_t k = 0; k < count; ++k) negative[k] = labels[k] != label ? negative[k] : 0;
  }
  if (a.mask) {
    const uint8_t* mask = a.mask + at * a.sizes.keys + first_key;
    for (int64_t k = 0; k < count; ++k) negative[k] = mask[k] ? negative[k] : 0;
  }
  if (own) negative[positive] = 0;
  return false;
}

// What is known of a query's negatives so far, a lane for every kLanes-th key.
template <typename V>
struct Tally {
  V most, total, sum, count, above;
};

template <int kBytes, bool kAll, typename scalar_t, typename V>
MG2L_INLINE void tally_tile(const PairArrays<scalar_t>& a, const scalar_t* scores,
                            const scalar_t* negative, scalar_t positive, Tally<V>& tally) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kVectors = kKeys / kLanes;
  const V one = splat<V>(scalar_t(1)), lowest = splat<V>(kLowest<scalar_t>);
  const V high = splat<V>(a.clip), low = -high, own = splat<V>(positive);
  V clipped[kVectors], most = tally.most;
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
    most = clipped[v] > most ? clipped[v] : most;
  }
  V total = tally.total * exp_lanes<kLanes>(tally.most - most);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const V e = exp_lanes<kLanes>(clipped[v] - most);
    if constexpr (kAll) {
      total += e;
    } else {
      total += e * load<V>(negative + v * kLanes);
    }
  }
  tally.most = most;
  tally.total = total;
}

template <typename scalar_t>
struct PairResults {
  scalar_t *lse, *lse_negatives, *mean, *positive;
  int64_t *negatives, *rank;
};

template <typename scalar_t>
scalar_t log_add(scalar_t a, scalar_t b) {
  const scalar_t most = std::max(a, b), least = std::min(a, b);
  return std::isinf(most) ? most : most + std::log1p(std::exp(least - most));
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void finish(const PairArrays<scalar_t>& a,
                        const Tally<Vec<scalar_t, kBytes / sizeof(scalar_t)>>& tally,
                        scalar_t positive, int64_t at, const PairResults<scalar_t>& out) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  scalar_t most = kLowest<scalar_t>;
  for (int lane = 0; lane < kLanes; ++lane) most = std::max<scalar_t>(most, tally.most[lane]);
  const V scaled = tally.total * exp_lanes<kLanes>(tally.most - splat<V>(most));
  const scalar_t total = sum_lanes<scalar_t, kLanes>(scaled);
  const scalar_t count = sum_lanes<scalar_t, kLanes>(tally.count);
  const scalar_t lse =
      count > 0 ? most + std::log(total) : -std::numeric_limits<scalar_t>::infinity();
  out.lse_negatives[at] = lse;
  out.lse[at] = log_add(lse, a.clipped(positive));
  out.mean[at] = sum_lanes<scalar_t, kLanes>(tally.sum) / std::max(count, scalar_t(1));
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

template <typename scalar_t>
struct PairGradients {
  const scalar_t *lse, *lse_negatives;  // results of the forward pass
  const int64_t* negatives;
  const scalar_t *to_lse, *to_negatives, *to_mean, *to_positive;  // gradients of the results
  scalar_t *queries, *keys, *std;                                 // to be written
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
    const scalar_t weight = g.to_negatives[at] + g.to_lse[at] * std::exp(negatives - g.lse[at]);
    const scalar_t mean =
        g.to_mean[at] / static_cast<scalar_t>(std::max<int64_t>(g.negatives[at], 1));
    const int64_t own = a.positive[at] - first_key;
    const scalar_t positive = own >= 0 && own < kKeys ? scores[own] : scalar_t(0);
    if (mark_negatives(a, group, first + i, first_key, scratch.negative)) {
      score_gradients<kBytes, true>(a, scores, scratch.negative, negatives, weight, mean);
    } else {
      score_gradients<kBytes, false>(a, scores, scratch.negative, negatives, weight, mean);
    }
    if (own >= 0 && own < kKeys) {
      const scalar_t share = std::exp(a.clipped(positive) - g.lse[at]);
      scores[own] = g.to_positive[at] + (a.within(positive) ? g.to_lse[at] * share : scalar_t(0));
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

template <typename scalar_t>
PairArrays<scalar_t> pair_arrays(const PairSizes& sizes, const PairTensors& t, double scale,
                                 std::optional<double> clip) {
  return {sizes,
          static_cast<scalar_t>(scale),
          clip.has_value(),
          static_cast<scalar_t>(clip.value_or(0)),
          data<scalar_t>(std::as_const(t.queries)),
          data<scalar_t>(std::as_const(t.keys)),
          data_or_null<scalar_t>(t.std),
          data<int64_t>(std::as_const(t.positive)),
          data_or_null<int64_t>(t.query_labels),
          data_or_null<int64_t>(t.key_labels),
          data_or_null<uint8_t>(t.mask)};
}

void check_positive(const PairSizes& sizes, const Tensor& positive) {
  const int64_t* at = data<int64_t>(positive);
  for (int64_t i = 0; i < sizes.groups * sizes.queries; ++i) {
    MG2L_CHECK(at[i] >= 0 && at[i] < sizes.keys,
               "pairwise_lse: positive must lie in [0, M) with M = ", sizes.keys, ", got ", at[i]);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pairwise_lse_cpu(
    const Tensor& queries, const Tensor& keys, const Tensor& positive, double scale,
    const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip) {
  const PairSizes sizes =
      check_pairwise_lse(queries, keys, positive, std, query_labels, key_labels, mask);
  const PairTensors tensors(queries, keys, positive, std, query_labels, key_labels, mask);
  check_positive(sizes, tensors.positive);
  const Sizes shape{sizes.groups, sizes.queries};
  const auto result = [&] { return torch::stable::new_empty(queries, shape); };
  Tensor lse = result(), lse_negatives = result(), mean = result(), own = result();
  Tensor negatives = torch::stable::new_empty(queries, shape, ScalarType::Long);
  Tensor rank = torch::stable::new_empty(queries, shape, ScalarType::Long);
  const auto run = [&](auto zero) {
    using scalar_t = decltype(zero);
    pairwise_lse_kernel<scalar_t>(
        pair_arrays<scalar_t>(sizes, tensors, scale, clip),
        {data<scalar_t>(lse), data<scalar_t>(lse_negatives), data<scalar_t>(mean),
         data<scalar_t>(own), data<int64_t>(negatives), data<int64_t>(rank)});
  };
  queries.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
  return {lse, lse_negatives, mean, own, negatives, rank};
}

std::tuple<Tensor, Tensor, Tensor> pairwise_lse_backward_cpu(
    const Tensor& to_lse_, const Tensor& to_negatives_, const Tensor& to_mean_,
    const Tensor& to_positive_, const Tensor& queries, const Tensor& keys, const Tensor& positive,
    double scale, const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip, const Tensor& lse_, const Tensor& lse_negatives_,
    const Tensor& negatives_) {
  const PairSizes sizes =
      check_pairwise_lse(queries, keys, positive, std, query_labels, key_labels, mask);
  const PairTensors tensors(queries, keys, positive, std, query_labels, key_labels, mask);
  const Tensor to_lse = as_contiguous(to_lse_), to_negatives = as_contiguous(to_negatives_);
  const Tensor to_mean = as_contiguous(to_mean_), to_positive = as_contiguous(to_positive_);
  const Tensor lse = as_contiguous(lse_), lse_negatives = as_contiguous(lse_negatives_);
  const Tensor negatives = as_contiguous(negatives_);
  Tensor grad_queries = torch::stable::new_empty(queries, sizes_of(queries));
  Tensor grad_keys = torch::stable::new_empty(keys, sizes_of(keys));
  Tensor grad_std = torch::stable::new_empty(keys, std ? sizes_of(keys) : Sizes{0});
  const auto run = [&](auto zero) {
    using scalar_t = decltype(zero);
    pairwise_lse_backward_kernel<scalar_t>(
        pair_arrays<scalar_t>(sizes, tensors, scale, clip),
        {data<scalar_t>(lse), data<scalar_t>(lse_negatives), data<int64_t>(negatives),
         data<scalar_t>(to_lse), data<scalar_t>(to_negatives), data<scalar_t>(to_mean),
         data<scalar_t>(to_positive), data<scalar_t>(grad_queries), data<scalar_t>(grad_keys),
         std ? data<scalar_t>(grad_std) : nullptr});
  };
  queries.scalar_type() == ScalarType::Float ? run(0.0F) : run(0.0);
  return {grad_queries, grad_keys, grad_std};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("pairwise_lse", TORCH_BOX(&mg2l::pairwise_lse_cpu));
  m.impl("pairwise_lse_backward", TORCH_BOX(&mg2l::pairwise_lse_backward_cpu));
}
