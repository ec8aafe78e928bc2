// CPU kernel of `contrast`.
#include "contrast.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "vec.h"

namespace mg2l {
namespace {

constexpr int64_t kLeastRows = 32;     // of a block
constexpr int64_t kMostBlocks = 16;    // of a group: each holds gradients of all keys
constexpr int64_t kMinTaskBlocks = 4;  // below it a thread costs more
constexpr int kSums = 3;               // of a block: log-probability, hits, divergence

// Rows in memory are vectors of the widest kind, filled up with zeros.
template <typename scalar_t>
int64_t padded(int64_t count) {
  constexpr int64_t kWidest = 64 / sizeof(scalar_t);
  return (count + kWidest - 1) / kWidest * kWidest;
}

// Keys of length one, [K, Dp] and the other way round, [D, Kp].
template <typename scalar_t>
struct UnitKeys {
  int64_t count, width, padded_count, padded_width;
  std::vector<scalar_t> rows, columns, norms;

  UnitKeys(const scalar_t* keys, int64_t count_, int64_t width_);
};

template <typename scalar_t>
struct ContrastArrays {
  int64_t groups, rows;
  scalar_t temperature, kl_weight, std_floor;
  const scalar_t* raw;
  const int64_t* positive;
  scalar_t* raw_slope;
};

// Length that a vector is divided by.
template <typename scalar_t>
scalar_t divisor(scalar_t square) {
  const scalar_t norm = std::sqrt(square), least = static_cast<scalar_t>(kSmallestNorm);
  return norm < least ? least : norm;  // NaN stays
}

template <typename scalar_t>
UnitKeys<scalar_t>::UnitKeys(const scalar_t* keys, int64_t count_, int64_t width_)
    : count(count_),
      width(width_),
      padded_count(padded<scalar_t>(count)),
      padded_width(padded<scalar_t>(width)),
      rows(static_cast<size_t>(count * padded_width)),
      columns(static_cast<size_t>(width * padded_count)),
      norms(static_cast<size_t>(count)) {
  for (int64_t k = 0; k < count; ++k) {
    scalar_t square = 0;
    for (int64_t d = 0; d < width; ++d) square += keys[k * width + d] * keys[k * width + d];
    const scalar_t norm = norms[static_cast<size_t>(k)] = divisor(square);
    for (int64_t d = 0; d < width; ++d) {
      const scalar_t x = keys[k * width + d] / norm;
      rows[static_cast<size_t>(k * padded_width + d)] = x;
      columns[static_cast<size_t>(d * padded_count + k)] = x;
    }
  }
}

// log of positive numbers for float: the exponent, and a polynomial around 1 (Cephes, relative
// error below 1e-7). Of what is not finite it is NaN.
template <int kLanes>
MG2L_INLINE Vec<float, kLanes> log_lanes(const Vec<float, kLanes>& x) {
  using V = Vec<float, kLanes>;
  using I = VecBits<float, kLanes>;
  I bits;
  std::memcpy(&bits, &x, sizeof(V));
  const I offset = (bits - 0x3f3504f3) & ~0x7fffff;  // of the exponent, about sqrt(1/2)
  const I mantissa = bits - offset;
  V m;
  std::memcpy(&m, &mantissa, sizeof(V));
  const V e = __builtin_convertvector(offset >> 23, V);
  const V y = m - 1.0F, z = y * y;
  V p = y * 7.0376836292e-2F - 1.1514610310e-1F;
  p = p * y + 1.1676998740e-1F;
  p = p * y - 1.2420140846e-1F;
  p = p * y + 1.4249322787e-1F;
  p = p * y - 1.6668057665e-1F;
  p = p * y + 2.0000714765e-1F;
  p = p * y - 2.4999993993e-1F;
  p = p * y + 3.3333331174e-1F;
  p = p * y * z + e * -2.12194440e-4F - z * 0.5F;
  return y + p + e * 0.693359375F + (x - x);
}

template <int kLanes>
MG2L_INLINE Vec<double, kLanes> log_lanes(Vec<double, kLanes> x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = std::log(x[lane]) + (x[lane] - x[lane]);
  return x;
}

// exp, and NaN of NaN.
template <int kLanes, typename scalar_t>
MG2L_INLINE Vec<scalar_t, kLanes> exp_or_nan(const Vec<scalar_t, kLanes>& x) {
  const Vec<scalar_t, kLanes> e = exp_lanes<kLanes>(x);
  return x == x ? e : x;
}

// Divergence from N(0, 1) of raw standard deviations, and its slope times `share`.
template <int kLanes, typename scalar_t>
MG2L_INLINE Vec<scalar_t, kLanes> spread(const scalar_t* raw, scalar_t std_floor, scalar_t share,
                                         scalar_t* slope) {
  using V = Vec<scalar_t, kLanes>;
  const V x = load<V>(raw), one = splat<V>(scalar_t(1));
  const V e = exp_or_nan<kLanes, scalar_t>(x < 0 ? x : -x);  // at most 1
  const V more = one + e, added = more - one;
  // log(1 + e) without what the sum has lost (Kahan).
  const V rest = added == 0 ? e : log_lanes<kLanes>(more) * (e / added);
  const auto linear = x > splat<V>(static_cast<scalar_t>(kSoftplusLinear));
  const V soft = linear ? x : V((x < 0 ? V{} : x) + rest);
  const V sigmoid = linear ? one : V((x < 0 ? e : one) / more);
  const V std = soft + splat<V>(std_floor);
  store(slope, V(splat<V>(share) * (std - one / std) * sigmoid));
  return (std * std - one) * splat<V>(scalar_t(0.5)) - log_lanes<kLanes>(std);
}

// Scores of a row against all keys, [Kp].
template <int kLanes, typename scalar_t>
MG2L_INLINE void score_row(const UnitKeys<scalar_t>& keys, const scalar_t* unit, scalar_t factor,
                           scalar_t* scores) {
  using V = Vec<scalar_t, kLanes>;
  for (int64_t k = 0; k < keys.padded_count; k += kLanes) {
    V even{}, odd{};
    const scalar_t* column = keys.columns.data() + k;
    int64_t d = 0;
    for (; d + 1 < keys.width; d += 2, column += 2 * keys.padded_count) {
      even += splat<V>(unit[d]) * load<V>(column);
      odd += splat<V>(unit[d + 1]) * load<V>(column + keys.padded_count);
    }
    if (d < keys.width) even += splat<V>(unit[d]) * load<V>(column);
    store(scores + k, V((even + odd) * splat<V>(factor)));
  }
}

// Sum over keys of a factor times the key, [Dp].
template <int kLanes, typename scalar_t>
MG2L_INLINE void combine_keys(const UnitKeys<scalar_t>& keys, const scalar_t* factors,
                              scalar_t* sums) {
  using V = Vec<scalar_t, kLanes>;
  for (int64_t d = 0; d < keys.padded_width; d += kLanes) {
    V even{}, odd{};
    const scalar_t* row = keys.rows.data() + d;
    int64_t k = 0;
    for (; k + 1 < keys.count; k += 2, row += 2 * keys.padded_width) {
      even += splat<V>(factors[k]) * load<V>(row);
      odd += splat<V>(factors[k + 1]) * load<V>(row + keys.padded_width);
    }
    if (k < keys.count) even += splat<V>(factors[k]) * load<V>(row);
    store(sums + d, V(even + odd));
  }
}

// Softmax of the scores of a row, less 1 at the own key. Returns the log-probability of that one.
template <int kLanes, typename scalar_t>
MG2L_INLINE scalar_t softmax_row(scalar_t* scores, int64_t count, int64_t padded_count,
                                 int64_t own) {
  using V = Vec<scalar_t, kLanes>;
  const scalar_t positive = scores[own];
  for (int64_t k = count; k < padded_count; ++k) scores[k] = -INFINITY;
  V highest = load<V>(scores);
  for (int64_t k = kLanes; k < padded_count; k += kLanes) {
    const V s = load<V>(scores + k);
    highest = s > highest ? s : highest;
  }
  scalar_t most = highest[0];
  for (int lane = 1; lane < kLanes; ++lane) most = highest[lane] > most ? highest[lane] : most;
  V wide{};
  for (int64_t k = 0; k < padded_count; k += kLanes) {
    const V e = exp_or_nan<kLanes, scalar_t>(V(load<V>(scores + k) - splat<V>(most)));
    store(scores + k, e);
    wide += e;  // of columns without a key 1e-38, or 0
  }
  const scalar_t total = sum_lanes<scalar_t, kLanes>(wide);
  const V inverse = splat<V>(1 / total);
  for (int64_t k = 0; k < padded_count; k += kLanes) {
    store(scores + k, V(load<V>(scores + k) * inverse));
  }
  scores[own] -= 1;
  return positive - most - std::log(total);
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void contrast_block(const ContrastArrays<scalar_t>& arrays,
                                const UnitKeys<scalar_t>& keys, int64_t group, int64_t begin,
                                int64_t end, scalar_t* key_slope, double* sums) {
  const ContrastArrays<scalar_t> a = arrays;  // a copy that no store can alias
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(scalar_t));
  using V = Vec<scalar_t, kLanes>;
  const int64_t width = keys.width, wide = keys.padded_width;
  const scalar_t share = scalar_t(1) / static_cast<scalar_t>(a.rows);
  std::vector<scalar_t> memory(static_cast<size_t>(4 * wide + keys.padded_count));
  scalar_t *unit = memory.data(), *slope = unit + wide, *std = slope + wide, *to_std = std + wide;
  scalar_t* scores = to_std + wide;
  double log_probs = 0, hits = 0, divergence = 0;
  for (int64_t row = begin; row < end; ++row) {
    const scalar_t* raw = a.raw + (group * a.rows + row) * 2 * width;
    scalar_t square = 0, middle = 0, apart = 0, along = 0;
    for (int64_t d = 0; d < width; ++d) square += raw[d] * raw[d];
    const scalar_t norm = divisor(square);
    for (int64_t d = 0; d < width; ++d) {
      unit[d] = raw[d] / norm;
      std[d] = raw[width + d];
    }
    for (int64_t d = 0; d < width; ++d) middle += unit[d] * unit[d];
    for (int64_t d = 0; d < wide; d += kLanes) {
      const V part = spread<kLanes>(std + d, a.std_floor, a.kl_weight * share, to_std + d);
      for (int lane = 0; lane < kLanes; ++lane) apart += d + lane < width ? part[lane] : 0;
    }
    // The mean is sqrt(D) u.
    divergence += static_cast<double>(middle * static_cast<scalar_t>(width) / 2 + apart);

    score_row<kLanes>(keys, unit, 1 / a.temperature, scores);
    const int64_t own = a.positive[row];
    const scalar_t positive = scores[own];
    int beaten = positive == positive ? 0 : 1;
    for (int64_t k = 0; k < keys.count; ++k) beaten |= scores[k] > positive ? 1 : 0;
    for (int64_t k = 0; k < own; ++k) beaten |= scores[k] == positive ? 1 : 0;
    hits += 1 - beaten;
    log_probs +=
        static_cast<double>(softmax_row<kLanes>(scores, keys.count, keys.padded_count, own));

    const V factor = splat<V>(share / a.temperature);
    for (int64_t k = 0; k < keys.padded_count; k += kLanes) {
      store(scores + k, V(load<V>(scores + k) * factor));
    }
    combine_keys<kLanes>(keys, scores, slope);
    for (int64_t k = 0; k < keys.count; ++k) {
      const V weight = splat<V>(scores[k]);
      scalar_t* to = key_slope + k * wide;
      for (int64_t d = 0; d < wide; d += kLanes) {
        store(to + d, V(load<V>(to + d) + weight * load<V>(unit + d)));
      }
    }
    // Through u = mean / |mean|, on which the divergence does not depend unless the mean vanishes.
    for (int64_t d = 0; d < width; ++d) along += slope[d] * unit[d];
    if (norm <= static_cast<scalar_t>(kSmallestNorm)) {
      along = -a.kl_weight * share * static_cast<scalar_t>(width);
    }
    scalar_t* to = a.raw_slope + (group * a.rows + row) * 2 * width;
    for (int64_t d = 0; d < width; ++d) {
      to[d] = (slope[d] - along * unit[d]) / norm;
      to[width + d] = to_std[d];
    }
  }
  sums[0] = log_probs;
  sums[1] = hits;
  sums[2] = divergence;
}

template <typename scalar_t>
void run(ContrastTensors& tensors, double temperature, double kl_weight, double std_floor) {
  const int64_t groups = tensors.groups, rows = tensors.rows, width = tensors.width;
  const UnitKeys<scalar_t> keys(data<scalar_t>(std::as_const(tensors.keys)), tensors.keys_count,
                                width);
  const int64_t all = keys.count * keys.padded_width;
  // Blocks do not depend on the number of threads, and are added in order.
  const int64_t block_rows = std::max(kLeastRows, (rows + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  std::vector<scalar_t> block_keys(static_cast<size_t>(groups * blocks * all));
  std::vector<double> partial(static_cast<size_t>(groups * blocks * kSums));
  const ContrastArrays<scalar_t> arrays{groups,
                                        rows,
                                        static_cast<scalar_t>(temperature),
                                        static_cast<scalar_t>(kl_weight),
                                        static_cast<scalar_t>(std_floor),
                                        data<scalar_t>(std::as_const(tensors.raw)),
                                        data<int64_t>(std::as_const(tensors.positive)),
                                        data<scalar_t>(tensors.raw_slope)};
  torch::stable::parallel_for(0, groups * blocks, kMinTaskBlocks, [&](int64_t first, int64_t last) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % blocks * block_rows;
        contrast_block<bytes>(arrays, keys, i / blocks, begin, std::min(rows, begin + block_rows),
                              block_keys.data() + i * all, partial.data() + i * kSums);
      }
    });
  });
  for (int64_t group = 0; group < groups; ++group) {
    double sums[kSums] = {};
    scalar_t* total = block_keys.data() + group * blocks * all;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int which = 0; which < kSums; ++which) {
        sums[which] += partial[static_cast<size_t>((group * blocks + block) * kSums + which)];
      }
      for (int64_t i = 0; block > 0 && i < all; ++i) total[i] += total[block * all + i];
    }
    for (int64_t k = 0; k < keys.count; ++k) {
      const scalar_t *unit = keys.rows.data() + k * keys.padded_width,
                     *own = blocks > 0 ? total + k * keys.padded_width : nullptr;
      scalar_t* slope = data<scalar_t>(tensors.key_slope) + (group * keys.count + k) * width;
      const scalar_t norm = keys.norms[static_cast<size_t>(k)];
      scalar_t along = 0;
      for (int64_t d = 0; d < width; ++d) {
        slope[d] = own == nullptr ? scalar_t(0) : own[d];
        along += slope[d] * unit[d];
      }
      if (norm <= static_cast<scalar_t>(kSmallestNorm)) along = 0;
      for (int64_t d = 0; d < width; ++d) slope[d] = (slope[d] - along * unit[d]) / norm;
    }
    const double count = static_cast<double>(rows), kl = sums[2] / count;
    const double bound = std::log(static_cast<double>(keys.count)) + sums[0] / count;
    data<scalar_t>(tensors.bound)[group] = static_cast<scalar_t>(bound);
    data<scalar_t>(tensors.accuracy)[group] = static_cast<scalar_t>(sums[1] / count);
    data<scalar_t>(tensors.kl)[group] = static_cast<scalar_t>(kl);
    data<scalar_t>(tensors.loss)[group] = static_cast<scalar_t>(kl_weight * kl - bound);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contrast_cpu(
    const Tensor& raw, const Tensor& keys, const Tensor& positive, double temperature,
    double kl_weight, double std_floor) {
  check_contrast(raw, keys, positive, temperature, kl_weight, std_floor);
  ContrastTensors tensors(raw, keys, positive);
  check_names_keys(tensors.positive, tensors.keys_count);
  for_floating(raw.scalar_type(),
               [&](auto zero) { run<decltype(zero)>(tensors, temperature, kl_weight, std_floor); });
  return {tensors.loss, tensors.bound,     tensors.accuracy,
          tensors.kl,   tensors.raw_slope, tensors.key_slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) { m.impl("contrast", TORCH_BOX(&mg2l::contrast_cpu)); }
