// Kernels of `pairwise_lse` and `pairwise_lse_backward`: plain pointers, no torch header.
//
// A block works on a tile of 32 rows against one tile of 32 columns after the other: a warp has 4
// rows, a lane a column. Scores live in registers and shared memory only; the backward pass makes
// them again, once with queries as rows for their gradients and once with keys. Every sum is taken
// by one thread in an order of its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "portable.cuh"

namespace mg2l {

constexpr int kSide = 32;                         // rows and columns of a tile, and a step of D
constexpr int kPairWarps = 8;                     // warps of a block
constexpr int kRowsPerWarp = kSide / kPairWarps;  // rows of a warp
constexpr int kOffsetThreads = 128;               // threads of a block, a key each
constexpr int kPairThreads = kSide * kPairWarps;

template <typename scalar_t>
struct PairArgs {
  int64_t groups, queries, keys, width;
  scalar_t scale, clip;                      // clip is 0 for none
  const scalar_t *query, *key;               // [G, B, D], [G, M, D]
  const scalar_t* std;                       // [G, M, D] or null
  const int64_t* positive;                   // [G, B]
  const int64_t *query_labels, *key_labels;  // [G, B], [G, M] or null
  const uint8_t* mask;                       // [G, B, M] or null
  scalar_t* offsets;                         // scratch, [G, M]; only with std

  __device__ bool is_negative(int64_t group, int64_t query_at, int64_t key_at) const {
    const int64_t row = group * queries + query_at;
    if (positive[row] == key_at) return false;
    if (query_labels != nullptr && query_labels[row] == key_labels[group * keys + key_at]) {
      return false;
    }
    return mask == nullptr || mask[row * keys + key_at] != 0;
  }

  __device__ scalar_t clipped(scalar_t score) const {
    if (clip <= 0) return score;
    return score < -clip ? -clip : score > clip ? clip : score;
  }
};

template <typename scalar_t>
struct PairResultArgs {
  PairArgs<scalar_t> args;
  scalar_t *lse, *lse_negatives, *mean, *positive_score;  // [G, B]
  int64_t *negatives, *rank;                              // [G, B]
};

template <typename scalar_t>
struct PairBackwardArgs {
  PairArgs<scalar_t> args;
  const scalar_t *lse, *lse_negatives;
  const int64_t* negatives;
  const scalar_t *to_lse, *to_negatives, *to_mean, *to_positive;  // gradients of the results
  scalar_t *grad_query, *grad_key, *grad_std;                     // the last null without std
};

// The constant of a Gaussian key's log-density, in double: it is large against what it is added to.
//
// Launch: grid.x * kOffsetThreads >= groups * keys. Writes offsets.
template <typename scalar_t>
__global__ void pair_offsets_kernel(PairArgs<scalar_t> args) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kOffsetThreads + threadIdx.x;
  if (at >= args.groups * args.keys) return;
  constexpr double kHalfLog2Pi = 0.91893853320467274;
  double logs = static_cast<double>(args.width) * kHalfLog2Pi;
  for (int64_t d = 0; d < args.width; ++d) {
    logs += log(static_cast<double>(args.std[at * args.width + d]));
  }
  args.offsets[at] = static_cast<scalar_t>(-static_cast<double>(args.scale) * logs);
}

// A step of D of a tile.
template <typename scalar_t>
struct PairTile {
  scalar_t rows[kSide][kSide + 1];
  scalar_t columns[kSide][kSide + 1];
  scalar_t inverses[kSide][kSide + 1];  // 1 / std of the keys, be they rows or columns
};

// Copies kSide vectors from `first` on, the coordinates from `d` on, times `factor`; zeros beyond.
template <typename scalar_t>
__device__ void load_side(const scalar_t* from, int64_t count, int64_t width, int64_t first,
                          int64_t d, scalar_t factor, bool inverted,
                          scalar_t (&to)[kSide][kSide + 1]) {
  for (int row = threadIdx.y; row < kSide; row += kPairWarps) {
    const int64_t at = first + row, coordinate = d + threadIdx.x;
    scalar_t value = 0;
    if (at < count && coordinate < width) {
      value = from[at * width + coordinate];
      value = inverted ? scalar_t(1) / value : factor * value;
    }
    to[row][threadIdx.x] = value;
  }
}

// Scores of the warp's rows against the lane's column. Coordinates are added one after the other
// and with explicit fma, as in `score_one`: a copy of the positive among the negatives must tie
// with it, whatever the compiler makes of a product and a sum elsewhere. kGaussian is `std !=
// nullptr`, known when compiled: a choice inside the loop would be predicated, and its products not
// fused.
template <bool kKeysAreRows, bool kGaussian, typename scalar_t>
__device__ void score_tile(const PairArgs<scalar_t>& args, int64_t group, int64_t first_row,
                           int64_t first_column, PairTile<scalar_t>& tile,
                           scalar_t (&score)[kRowsPerWarp]) {
  const scalar_t* query = args.query + group * args.queries * args.width;
  const scalar_t* key = args.key + group * args.keys * args.width;
  const scalar_t* std = kGaussian ? args.std + group * args.keys * args.width : nullptr;
  const scalar_t factor = kGaussian ? scalar_t(1) : args.scale;
  const int64_t first_query = kKeysAreRows ? first_column : first_row;
  const int64_t first_key = kKeysAreRows ? first_row : first_column;
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) score[r] = 0;
  for (int64_t d = 0; d < args.width; d += kSide) {
    __syncthreads();
    load_side(query, args.queries, args.width, first_query, d, factor, false,
              kKeysAreRows ? tile.columns : tile.rows);
    load_side(key, args.keys, args.width, first_key, d, scalar_t(1), false,
              kKeysAreRows ? tile.rows : tile.columns);
    if constexpr (kGaussian) {
      load_side(std, args.keys, args.width, first_key, d, scalar_t(1), true, tile.inverses);
    }
    __syncthreads();
    const int steps = args.width - d < kSide ? static_cast<int>(args.width - d) : kSide;
#pragma unroll 4
    for (int i = 0; i < steps; ++i) {
      const scalar_t column = tile.columns[threadIdx.x][i];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int row = threadIdx.y * kRowsPerWarp + r;
        if constexpr (!kGaussian) {
          score[r] = fma(tile.rows[row][i], column, score[r]);
        } else {
          const scalar_t inverse = tile.inverses[kKeysAreRows ? row : threadIdx.x][i];
          const scalar_t error = kKeysAreRows ? (column - tile.rows[row][i]) * inverse
                                              : (tile.rows[row][i] - column) * inverse;
          score[r] = fma(error, error, score[r]);
        }
      }
    }
  }
  if constexpr (kGaussian) {
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int64_t row = first_row + threadIdx.y * kRowsPerWarp + r;
      const int64_t at = kKeysAreRows ? row : first_column + threadIdx.x;
      const scalar_t offset = at < args.keys ? args.offsets[group * args.keys + at] : scalar_t(0);
      score[r] = fma(score[r], scalar_t(-0.5) * args.scale, offset);
    }
  }
}

// The score of one query and key, rounded as in `score_tile`.
template <bool kGaussian, typename scalar_t>
__device__ scalar_t score_one(const PairArgs<scalar_t>& args, int64_t group, int64_t query_at,
                              int64_t key_at) {
  const scalar_t* query = args.query + (group * args.queries + query_at) * args.width;
  const int64_t at = group * args.keys + key_at;
  const scalar_t* key = args.key + at * args.width;
  scalar_t sum = 0;
  if constexpr (!kGaussian) {
    for (int64_t d = 0; d < args.width; ++d) sum = fma(args.scale * query[d], key[d], sum);
    return sum;
  } else {
    for (int64_t d = 0; d < args.width; ++d) {
      const scalar_t inverse = scalar_t(1) / args.std[at * args.width + d];
      const scalar_t error = (query[d] - key[d]) * inverse;
      sum = fma(error, error, sum);
    }
    return fma(sum, scalar_t(-0.5) * args.scale, args.offsets[at]);
  }
}

template <typename scalar_t>
__device__ scalar_t pair_warp_sum(scalar_t value) {
  for (int lanes = kSide / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// What is known of a query's negatives: each lane of those in its columns.
//
// Launch: grid (ceil(B / 32), groups), block (32, kPairWarps). Writes every result.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_kernel(PairResultArgs<scalar_t> out) {
  __shared__ PairTile<scalar_t> tile;
  const PairArgs<scalar_t>& args = out.args;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  scalar_t own[kRowsPerWarp], top[kRowsPerWarp], total[kRowsPerWarp], sum[kRowsPerWarp];
  int count[kRowsPerWarp], above[kRowsPerWarp];
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
    own[r] = 0;
    if (query < args.queries) {
      const int64_t key = args.positive[group * args.queries + query];
      const bool exists = key >= 0 && key < args.keys;
      own[r] = exists ? score_one<kGaussian>(args, group, query, key) : scalar_t(NAN);
    }
    top[r] = -INFINITY;
    total[r] = sum[r] = 0;
    count[r] = above[r] = 0;
  }
  for (int64_t column = 0; column < args.keys; column += kSide) {
    scalar_t score[kRowsPerWarp];
    score_tile<false, kGaussian>(args, group, first, column, tile, score);
    const int64_t key = column + threadIdx.x;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
      if (query < args.queries && key < args.keys && args.is_negative(group, query, key)) {
        const scalar_t clipped = args.clipped(score[r]), before = top[r];
        top[r] = clipped > before ? clipped : before;
        total[r] = total[r] * exp(before - top[r]) + exp(clipped - top[r]);
        sum[r] += score[r];
        count[r] += 1;
        above[r] += score[r] > own[r] ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    scalar_t most = top[r];
    for (int lanes = kSide / 2; lanes > 0; lanes /= 2) {
      const scalar_t other = __shfl_xor_sync(0xffffffffu, most, lanes);
      most = other > most ? other : most;
    }
    const scalar_t all = pair_warp_sum(count[r] > 0 ? total[r] * exp(top[r] - most) : scalar_t(0));
    const scalar_t sums = pair_warp_sum(sum[r]);
    const int negatives = pair_warp_sum(count[r]), rank = pair_warp_sum(above[r]);
    const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
    if (threadIdx.x == 0 && query < args.queries) {
      const int64_t at = group * args.queries + query;
      // x - x is 0, or NaN where x is not finite.
      const scalar_t lse = (negatives > 0 ? most + log(all) : scalar_t(-INFINITY)) + (sums - sums);
      const scalar_t clipped = args.clipped(own[r]) + (own[r] - own[r]);
      const scalar_t larger = lse > clipped ? lse : clipped, less = lse > clipped ? clipped : lse;
      out.lse_negatives[at] = lse;
      out.lse[at] = larger + log1p(exp(less - larger));
      out.mean[at] = sums / static_cast<scalar_t>(negatives > 1 ? negatives : 1);
      out.positive_score[at] = own[r];
      out.negatives[at] = negatives;
      out.rank[at] = rank;
    }
  }
}

// The gradient of a score.
template <typename scalar_t>
__device__ scalar_t score_gradient(const PairBackwardArgs<scalar_t>& g, int64_t group,
                                   int64_t query, int64_t key, scalar_t score) {
  const PairArgs<scalar_t>& args = g.args;
  if (query >= args.queries || key >= args.keys) return 0;
  const int64_t at = group * args.queries + query;
  const scalar_t clipped = args.clipped(score);
  const bool within = args.clip <= 0 || clipped == score;
  if (args.positive[at] == key) {
    return g.to_positive[at] + (within ? g.to_lse[at] * exp(clipped - g.lse[at]) : scalar_t(0));
  }
  if (!args.is_negative(group, query, key)) return 0;
  const scalar_t mean = g.to_mean[at] / static_cast<scalar_t>(g.negatives[at]);
  if (!within) return mean;
  return mean + g.to_lse[at] * exp(clipped - g.lse[at]) +
         g.to_negatives[at] * exp(clipped - g.lse_negatives[at]);
}

// The gradients of a tile's scores, into shared memory.
template <bool kKeysAreRows, bool kGaussian, typename scalar_t>
__device__ void gradient_tile(const PairBackwardArgs<scalar_t>& g, int64_t group, int64_t first,
                              int64_t column, PairTile<scalar_t>& tile,
                              scalar_t (&gradients)[kSide][kSide + 1]) {
  scalar_t score[kRowsPerWarp];
  score_tile<kKeysAreRows, kGaussian>(g.args, group, first, column, tile, score);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int row = threadIdx.y * kRowsPerWarp + r;
    const int64_t a = first + row, b = column + threadIdx.x;
    gradients[row][threadIdx.x] =
        score_gradient(g, group, kKeysAreRows ? b : a, kKeysAreRows ? a : b, score[r]);
  }
  __syncwarp();  // a warp reads its own rows only; the next tile begins with a barrier
}

// The gradients of 32 queries: a lane to every 32nd coordinate, added up in global memory by the
// thread that owns them.
//
// Launch: grid (ceil(B / 32), groups), block (32, kPairWarps). Writes grad_query.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_backward_queries_kernel(PairBackwardArgs<scalar_t> g) {
  __shared__ PairTile<scalar_t> tile;
  __shared__ scalar_t gradients[kSide][kSide + 1];
  const PairArgs<scalar_t>& args = g.args;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  for (int64_t column = 0; column < args.keys; column += kSide) {
    gradient_tile<false, kGaussian>(g, group, first, column, tile, gradients);
    const int64_t left = args.keys - column;
    const int count = left < kSide ? static_cast<int>(left) : kSide;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int row = threadIdx.y * kRowsPerWarp + r;
      if (first + row >= args.queries) break;
      for (int64_t d = threadIdx.x; d < args.width; d += kSide) {
        const int64_t to = (group * args.queries + first + row) * args.width + d;
        const scalar_t query = args.query[to];
        scalar_t sum = column == 0 ? scalar_t(0) : g.grad_query[to];
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const int64_t at = (group * args.keys + column + j) * args.width + d;
          scalar_t slope = args.key[at];
          if constexpr (kGaussian) slope = (slope - query) / (args.std[at] * args.std[at]);
          sum += args.scale * gradients[row][j] * slope;
        }
        g.grad_query[to] = sum;
      }
    }
  }
}

// The gradients of 32 keys, and of their standard deviations.
//
// Launch: grid (ceil(M / 32), groups), block (32, kPairWarps). Writes grad_key, grad_std.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_backward_keys_kernel(PairBackwardArgs<scalar_t> g) {
  __shared__ PairTile<scalar_t> tile;
  __shared__ scalar_t gradients[kSide][kSide + 1];
  const PairArgs<scalar_t>& args = g.args;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  for (int64_t column = 0; column < args.queries; column += kSide) {
    gradient_tile<true, kGaussian>(g, group, first, column, tile, gradients);
    const int64_t left = args.queries - column;
    const int count = left < kSide ? static_cast<int>(left) : kSide;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int row = threadIdx.y * kRowsPerWarp + r;
      if (first + row >= args.keys) break;
      for (int64_t d = threadIdx.x; d < args.width; d += kSide) {
        const int64_t to = (group * args.keys + first + row) * args.width + d;
        scalar_t sum = column == 0 ? scalar_t(0) : g.grad_key[to];
        if constexpr (!kGaussian) {
#pragma unroll 4
          for (int i = 0; i < count; ++i) {
            sum += args.scale * gradients[row][i] *
                   args.query[(group * args.queries + column + i) * args.width + d];
          }
        } else {
          const scalar_t key = args.key[to], inverse = scalar_t(1) / args.std[to];
          scalar_t std_sum = column == 0 ? scalar_t(0) : g.grad_std[to];
#pragma unroll 4
          for (int i = 0; i < count; ++i) {
            const scalar_t query = args.query[(group * args.queries + column + i) * args.width + d];
            const scalar_t error = (query - key) * inverse;
            const scalar_t gradient = args.scale * gradients[row][i] * inverse;
            sum += gradient * error;
            std_sum += gradient * (error * error - scalar_t(1));
          }
          g.grad_std[to] = std_sum;
        }
        g.grad_key[to] = sum;
      }
    }
  }
}

}  // namespace mg2l
