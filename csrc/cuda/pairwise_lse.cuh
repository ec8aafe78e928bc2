// Kernels of `pairwise_lse` and `pairwise_lse_backward`: plain pointers, no torch header.
//
// A block works on a tile of 32 rows against one tile of 32 columns after the other: a warp has 4
// rows, a lane a column. Scores stay in registers and shared memory only; the backward pass makes
// them again, once with queries as rows for their gradients and once with keys. Every sum is taken
// by one thread in an order of its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kSide = 32;                         // rows and columns of a tile, and a step of D
constexpr int kPairWarps = 8;                     // warps of a block
constexpr int kRowsPerWarp = kSide / kPairWarps;  // rows of a warp
constexpr int kOffsetThreads = 128;               // threads of a block, a key each
constexpr int kPairThreads = kSide * kPairWarps;

template <typename scalar_t>
__device__ bool is_negative(const PairArgs<scalar_t>& in, int64_t group, int64_t query,
                            int64_t key) {
  const int64_t row = group * in.queries + query;
  if (in.positive[row] == key) return false;
  if (in.query_labels != nullptr && in.query_labels[row] == in.key_labels[group * in.keys + key]) {
    return false;
  }
  return in.mask == nullptr || in.mask[row * in.keys + key] != 0;
}

template <typename scalar_t>
__device__ scalar_t clip_score(const PairArgs<scalar_t>& in, scalar_t score) {
  if (in.clip <= 0) return score;
  return score < -in.clip ? -in.clip : score > in.clip ? in.clip : score;
}

// The constant of a Gaussian key's log-density, in double: it is large against what it is added to.
//
// Launch: grid.x * kOffsetThreads >= groups * keys. Writes offsets.
template <typename scalar_t>
__global__ void pair_offsets_kernel(PairArgs<scalar_t> in) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kOffsetThreads + threadIdx.x;
  if (at >= in.groups * in.keys) return;
  constexpr double kHalfLog2Pi = 0.91893853320467274;
  double logs = static_cast<double>(in.width) * kHalfLog2Pi;
  for (int64_t d = 0; d < in.width; ++d) {
    logs += log(static_cast<double>(in.std[at * in.width + d]));
  }
  in.offsets[at] = static_cast<scalar_t>(-static_cast<double>(in.scale) * logs);
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
__device__ void score_tile(const PairArgs<scalar_t>& in, int64_t group, int64_t first_row,
                           int64_t first_column, PairTile<scalar_t>& tile,
                           scalar_t (&score)[kRowsPerWarp]) {
  const scalar_t* query = in.query + group * in.queries * in.width;
  const scalar_t* key = in.key + group * in.keys * in.width;
  const scalar_t* std = kGaussian ? in.std + group * in.keys * in.width : nullptr;
  const scalar_t factor = kGaussian ? scalar_t(1) : in.scale;
  const int64_t first_query = kKeysAreRows ? first_column : first_row;
  const int64_t first_key = kKeysAreRows ? first_row : first_column;
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) score[r] = 0;
  for (int64_t d = 0; d < in.width; d += kSide) {
    __syncthreads();
    load_side(query, in.queries, in.width, first_query, d, factor, false,
              kKeysAreRows ? tile.columns : tile.rows);
    load_side(key, in.keys, in.width, first_key, d, scalar_t(1), false,
              kKeysAreRows ? tile.rows : tile.columns);
    if constexpr (kGaussian) {
      load_side(std, in.keys, in.width, first_key, d, scalar_t(1), true, tile.inverses);
    }
    __syncthreads();
    const int steps = in.width - d < kSide ? static_cast<int>(in.width - d) : kSide;
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
      const scalar_t offset = at < in.keys ? in.offsets[group * in.keys + at] : scalar_t(0);
      score[r] = fma(score[r], scalar_t(-0.5) * in.scale, offset);
    }
  }
}

// The score of one query and key, rounded as in `score_tile`.
template <bool kGaussian, typename scalar_t>
__device__ scalar_t score_one(const PairArgs<scalar_t>& in, int64_t group, int64_t query_at,
                              int64_t key_at) {
  const scalar_t* query = in.query + (group * in.queries + query_at) * in.width;
  const int64_t at = group * in.keys + key_at;
  const scalar_t* key = in.key + at * in.width;
  scalar_t sum = 0;
  if constexpr (!kGaussian) {
    for (int64_t d = 0; d < in.width; ++d) sum = fma(in.scale * query[d], key[d], sum);
    return sum;
  } else {
    for (int64_t d = 0; d < in.width; ++d) {
      const scalar_t inverse = scalar_t(1) / in.std[at * in.width + d];
      const scalar_t error = (query[d] - key[d]) * inverse;
      sum = fma(error, error, sum);
    }
    return fma(sum, scalar_t(-0.5) * in.scale, in.offsets[at]);
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
__global__ void pairwise_lse_kernel(PairForwardArgs<scalar_t> args) {
  __shared__ PairTile<scalar_t> tile;
  const PairArgs<scalar_t>& in = args.in;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  scalar_t own[kRowsPerWarp], running_max[kRowsPerWarp], running_sum[kRowsPerWarp],
      score_sum[kRowsPerWarp];
  int count[kRowsPerWarp], above[kRowsPerWarp];
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
    own[r] = 0;
    if (query < in.queries) {
      const int64_t key = in.positive[group * in.queries + query];
      const bool exists = key >= 0 && key < in.keys;
      own[r] = exists ? score_one<kGaussian>(in, group, query, key) : scalar_t(NAN);
    }
    running_max[r] = -INFINITY;
    running_sum[r] = score_sum[r] = 0;
    count[r] = above[r] = 0;
  }
  for (int64_t column = 0; column < in.keys; column += kSide) {
    scalar_t score[kRowsPerWarp];
    score_tile<false, kGaussian>(in, group, first, column, tile, score);
    const int64_t key = column + threadIdx.x;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
      if (query < in.queries && key < in.keys && is_negative(in, group, query, key)) {
        const scalar_t clipped = clip_score(in, score[r]), previous_max = running_max[r];
        running_max[r] = clipped > previous_max ? clipped : previous_max;
        running_sum[r] =
            running_sum[r] * exp(previous_max - running_max[r]) + exp(clipped - running_max[r]);
        score_sum[r] += score[r];
        count[r] += 1;
        above[r] += score[r] > own[r] ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    scalar_t row_max = running_max[r];
    for (int lanes = kSide / 2; lanes > 0; lanes /= 2) {
      const scalar_t other = __shfl_xor_sync(0xffffffffu, row_max, lanes);
      row_max = other > row_max ? other : row_max;
    }
    const scalar_t row_sum =
        pair_warp_sum(count[r] > 0 ? running_sum[r] * exp(running_max[r] - row_max) : scalar_t(0));
    const scalar_t row_score_sum = pair_warp_sum(score_sum[r]);
    const int negatives = pair_warp_sum(count[r]), rank = pair_warp_sum(above[r]);
    const int64_t query = first + threadIdx.y * kRowsPerWarp + r;
    if (threadIdx.x == 0 && query < in.queries) {
      const int64_t at = group * in.queries + query;
      // x - x is 0, or NaN where x is not finite.
      const scalar_t lse = (negatives > 0 ? row_max + log(row_sum) : scalar_t(-INFINITY)) +
                           (row_score_sum - row_score_sum);
      const scalar_t clipped = clip_score(in, own[r]) + (own[r] - own[r]);
      const scalar_t larger = lse > clipped ? lse : clipped, less = lse > clipped ? clipped : lse;
      args.lse_negatives[at] = lse;
      args.lse[at] = larger + log1p(exp(less - larger));
      args.mean[at] = row_score_sum / static_cast<scalar_t>(negatives > 1 ? negatives : 1);
      args.positive_score[at] = own[r];
      args.negatives[at] = negatives;
      args.rank[at] = rank;
    }
  }
}

// The gradient of a score.
template <typename scalar_t>
__device__ scalar_t score_gradient(const PairBackwardArgs<scalar_t>& args, int64_t group,
                                   int64_t query, int64_t key, scalar_t score) {
  const PairArgs<scalar_t>& in = args.in;
  if (query >= in.queries || key >= in.keys) return 0;
  const int64_t at = group * in.queries + query;
  const scalar_t clipped = clip_score(in, score);
  const bool within = in.clip <= 0 || clipped == score;
  if (in.positive[at] == key) {
    return args.grad_positive[at] +
           (within ? args.grad_lse[at] * exp(clipped - args.lse[at]) : scalar_t(0));
  }
  if (!is_negative(in, group, query, key)) return 0;
  const scalar_t mean = args.grad_mean[at] / static_cast<scalar_t>(args.negatives[at]);
  if (!within) return mean;
  return mean + args.grad_lse[at] * exp(clipped - args.lse[at]) +
         args.grad_lse_negatives[at] * exp(clipped - args.lse_negatives[at]);
}

// The gradients of a tile's scores, into shared memory.
template <bool kKeysAreRows, bool kGaussian, typename scalar_t>
__device__ void gradient_tile(const PairBackwardArgs<scalar_t>& args, int64_t group, int64_t first,
                              int64_t column, PairTile<scalar_t>& tile,
                              scalar_t (&gradients)[kSide][kSide + 1]) {
  scalar_t score[kRowsPerWarp];
  score_tile<kKeysAreRows, kGaussian>(args.in, group, first, column, tile, score);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int row = threadIdx.y * kRowsPerWarp + r;
    const int64_t a = first + row, b = column + threadIdx.x;
    gradients[row][threadIdx.x] =
        score_gradient(args, group, kKeysAreRows ? b : a, kKeysAreRows ? a : b, score[r]);
  }
  __syncwarp();  // a warp reads its own rows only; the next tile begins with a barrier
}

// The gradients of 32 queries: a lane to every 32nd coordinate, added up in global memory by the
// thread that owns them.
//
// Launch: grid (ceil(B / 32), groups), block (32, kPairWarps). Writes grad_query.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_backward_queries_kernel(PairBackwardArgs<scalar_t> args) {
  __shared__ PairTile<scalar_t> tile;
  __shared__ scalar_t gradients[kSide][kSide + 1];
  const PairArgs<scalar_t>& in = args.in;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  for (int64_t column = 0; column < in.keys; column += kSide) {
    gradient_tile<false, kGaussian>(args, group, first, column, tile, gradients);
    const int64_t left = in.keys - column;
    const int count = left < kSide ? static_cast<int>(left) : kSide;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int row = threadIdx.y * kRowsPerWarp + r;
      if (first + row >= in.queries) break;
      for (int64_t d = threadIdx.x; d < in.width; d += kSide) {
        const int64_t to = (group * in.queries + first + row) * in.width + d;
        const scalar_t query = in.query[to];
        scalar_t sum = column == 0 ? scalar_t(0) : args.grad_query[to];
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const int64_t at = (group * in.keys + column + j) * in.width + d;
          scalar_t slope = in.key[at];
          if constexpr (kGaussian) slope = (slope - query) / (in.std[at] * in.std[at]);
          sum += in.scale * gradients[row][j] * slope;
        }
        args.grad_query[to] = sum;
      }
    }
  }
}

// The gradients of 32 keys, and of their standard deviations.
//
// Launch: grid (ceil(M / 32), groups), block (32, kPairWarps). Writes grad_key, grad_std.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_backward_keys_kernel(PairBackwardArgs<scalar_t> args) {
  __shared__ PairTile<scalar_t> tile;
  __shared__ scalar_t gradients[kSide][kSide + 1];
  const PairArgs<scalar_t>& in = args.in;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  for (int64_t column = 0; column < in.queries; column += kSide) {
    gradient_tile<true, kGaussian>(args, group, first, column, tile, gradients);
    const int64_t left = in.queries - column;
    const int count = left < kSide ? static_cast<int>(left) : kSide;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int row = threadIdx.y * kRowsPerWarp + r;
      if (first + row >= in.keys) break;
      for (int64_t d = threadIdx.x; d < in.width; d += kSide) {
        const int64_t to = (group * in.keys + first + row) * in.width + d;
        scalar_t sum = column == 0 ? scalar_t(0) : args.grad_key[to];
        if constexpr (!kGaussian) {
#pragma unroll 4
          for (int i = 0; i < count; ++i) {
            sum += in.scale * gradients[row][i] *
                   in.query[(group * in.queries + column + i) * in.width + d];
          }
        } else {
          const scalar_t key = in.key[to], inverse = scalar_t(1) / in.std[to];
          scalar_t std_sum = column == 0 ? scalar_t(0) : args.grad_std[to];
#pragma unroll 4
          for (int i = 0; i < count; ++i) {
            const scalar_t query = in.query[(group * in.queries + column + i) * in.width + d];
            const scalar_t error = (query - key) * inverse;
            const scalar_t gradient = in.scale * gradients[row][i] * inverse;
            sum += gradient * error;
            std_sum += gradient * (error * error - scalar_t(1));
          }
          args.grad_std[to] = std_sum;
        }
        args.grad_key[to] = sum;
      }
    }
  }
}

}  // namespace mg2l
