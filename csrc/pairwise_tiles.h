// Tiles of scores, of which both CPU kernels of `pairwise_lse` are made: the keys as they are read,
// the scores of a tile of queries and keys, and which of them count. Keys lie along the vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gemm.h"
#include "pairwise_lse.h"

namespace mg2l {

constexpr int64_t kQueries = 48;  // queries of a tile
constexpr int64_t kKeys = 64;     // keys of a tile
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
        for (int64_t d = 0; d < width; ++d) {
          const scalar_t x = keys[key * width + d];
          to[d] += std::isfinite(x) ? x : scalar_t(0);  // or every key would get what one has
        }
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

}  // namespace mg2l
