// Kernels of `pairwise_lse`: plain pointers, no torch header.
//
// A block works on a tile of 32 rows against one tile of 32 columns after the other: a warp has 4
// rows, a lane a column. Where rows are few, several blocks share a tile of rows, with a part of
// the columns each. Scores stay in registers and shared memory only, or are read where they have
// been made before, by matrix products (Scores::kProducts). Every sum is taken by one thread in an
// order of its own: no atomics, the same result in every run.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "pairwise_lse_layout.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kPairWarps = 8;                     // warps of a block
constexpr int kRowsPerWarp = kSide / kPairWarps;  // rows of a warp
constexpr int kOffsetThreads = 128;               // threads of a block, a number each
constexpr unsigned kAllLanes = 0xffffffffu;

// How scores are made.
enum class Scores { kDot, kGaussian, kProducts };

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
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}

// What is known of a query's negatives: of some of them, or of all.
template <typename scalar_t>
struct PairRow {
  scalar_t max = -INFINITY;  // of the clipped scores
  scalar_t sum = 0;          // of exponentials, relative to max
  scalar_t scores = 0;       // their sum, not clipped
  int count = 0;
  int above = 0;  // the positive
};

template <typename scalar_t>
__device__ void add_score(const PairArgs<scalar_t>& in, scalar_t score, scalar_t own,
                          PairRow<scalar_t>& row) {
  const scalar_t clipped = clip_score(in, score), previous_max = row.max;
  row.max = clipped > previous_max ? clipped : previous_max;
  row.sum = row.sum * exp(previous_max - row.max) + exp(clipped - row.max);
  row.scores += score;
  row.count += 1;
  row.above += score > own ? 1 : 0;
}

// What the lanes of a warp know together, in every lane.
template <typename scalar_t>
__device__ PairRow<scalar_t> join_lanes(const PairRow<scalar_t>& row) {
  PairRow<scalar_t> all;
  all.max = row.max;
  for (int lanes = kSide / 2; lanes > 0; lanes /= 2) {
    const scalar_t other = __shfl_xor_sync(kAllLanes, all.max, lanes);
    all.max = other > all.max ? other : all.max;
  }
  all.sum = pair_warp_sum(row.count > 0 ? row.sum * exp(row.max - all.max) : scalar_t(0));
  all.scores = pair_warp_sum(row.scores);
  all.count = pair_warp_sum(row.count);
  all.above = pair_warp_sum(row.above);
  return all;
}

template <typename scalar_t>
__device__ void write_row(const PairForwardArgs<scalar_t>& args, int64_t at, scalar_t own,
                          const PairRow<scalar_t>& row) {
  // x - x is 0, or NaN where x is not finite.
  const scalar_t lse =
      (row.count > 0 ? row.max + log(row.sum) : scalar_t(-INFINITY)) + (row.scores - row.scores);
  const scalar_t clipped = clip_score(args.in, own) + (own - own);
  const scalar_t larger = lse > clipped ? lse : clipped, less = lse > clipped ? clipped : lse;
  args.lse_negatives[at] = lse;
  args.lse[at] = larger + log1p(exp(less - larger));
  args.mean[at] = row.scores / static_cast<scalar_t>(row.count > 1 ? row.count : 1);
  args.negatives[at] = row.count;
  args.rank[at] = row.above;
}

// The score of a query's positive; NaN where there is no such key.
template <Scores kScores, typename scalar_t>
__device__ scalar_t positive_score(const PairArgs<scalar_t>& in, int64_t group, int64_t query) {
  if (query >= in.queries) return 0;
  const int64_t key = in.positive[group * in.queries + query];
  if (key < 0 || key >= in.keys) return NAN;
  if constexpr (kScores == Scores::kProducts) return in.scale * in.products[query * in.keys + key];
  return score_one<kScores == Scores::kGaussian>(in, group, query, key);
}

// The scores of 32 queries and their part of the keys, reduced: each lane those of its columns,
// then the lanes together. Where several blocks share the queries, each leaves a row of `partial`
// for each of them.
//
// Launch: grid (ceil(B / 32), groups, splits), block (32, kPairWarps). Writes positive_score, and
// every other result or partial.
template <Scores kScores, typename scalar_t>
__global__ void pairwise_lse_kernel(PairForwardArgs<scalar_t> args) {
  __shared__ PairTile<scalar_t> tile;
  const PairArgs<scalar_t>& in = args.in;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  const int64_t split = blockIdx.z, tiles = (in.keys + kSide - 1) / kSide;
  const int64_t first_of_warp = first + threadIdx.y * kRowsPerWarp;
  scalar_t own[kRowsPerWarp];
  PairRow<scalar_t> row[kRowsPerWarp];
  // Each lane makes the score of one of the warp's rows.
  const scalar_t lane_own =
      positive_score<kScores>(in, group, first_of_warp + threadIdx.x % kRowsPerWarp);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) own[r] = __shfl_sync(kAllLanes, lane_own, r);
  const int64_t end = (split + 1) * tiles / args.splits * kSide;
  for (int64_t column = split * tiles / args.splits * kSide; column < end; column += kSide) {
    const int64_t key = column + threadIdx.x;
    scalar_t score[kRowsPerWarp];
    if constexpr (kScores == Scores::kProducts) {
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int64_t query = first_of_warp + r;
        const bool exists = query < in.queries && key < in.keys;
        score[r] = exists ? in.scale * in.products[query * in.keys + key] : scalar_t(0);
      }
    } else {
      score_tile<false, kScores == Scores::kGaussian>(in, group, first, column, tile, score);
    }
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int64_t query = first_of_warp + r;
      if (query < in.queries && key < in.keys && is_negative(in, group, query, key)) {
        add_score(in, score[r], own[r], row[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const PairRow<scalar_t> all = join_lanes(row[r]);
    const int64_t query = first_of_warp + r;
    if (threadIdx.x == 0 && query < in.queries) {
      const int64_t at = group * in.queries + query, part = at * args.splits + split;
      if (split == 0) args.positive_score[at] = own[r];
      if (args.splits == 1) {
        write_row(args, at, own[r], all);
      } else {
        args.partial[part * 3] = all.max;
        args.partial[part * 3 + 1] = all.sum;
        args.partial[part * 3 + 2] = all.scores;
        args.partial_counts[part * 2] = all.count;
        args.partial_counts[part * 2 + 1] = all.above;
      }
    }
  }
}

// Puts the splits of every query together: a warp to a query, a lane to a split.
//
// Launch: grid.x * kPairWarps >= groups * queries, block (32, kPairWarps). Writes the results.
template <typename scalar_t>
__global__ void pairwise_lse_finish_kernel(PairForwardArgs<scalar_t> args) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kPairWarps + threadIdx.y;
  if (at >= args.in.groups * args.in.queries) return;
  PairRow<scalar_t> row;
  if (threadIdx.x < args.splits) {
    const int64_t part = at * args.splits + threadIdx.x;
    row.max = args.partial[part * 3];
    row.sum = args.partial[part * 3 + 1];
    row.scores = args.partial[part * 3 + 2];
    row.count = static_cast<int>(args.partial_counts[part * 2]);
    row.above = static_cast<int>(args.partial_counts[part * 2 + 1]);
  }
  const PairRow<scalar_t> all = join_lanes(row);
  if (threadIdx.x == 0) write_row(args, at, args.positive_score[at], all);
}

}  // namespace mg2l
