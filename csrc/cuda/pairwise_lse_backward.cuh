// Kernels of `pairwise_lse_backward`: plain pointers, no torch header. As pairwise_lse.cuh, whose
// tiles are made again, with queries as rows for their gradients and with keys for theirs.
#pragma once

#include <cstdint>

#include "pairwise_lse.cuh"

namespace mg2l {

// The gradient of a score.
template <typename scalar_t>
__device__ scalar_t score_gradient(const PairGradients<scalar_t>& of, int64_t group, int64_t query,
                                   int64_t key, scalar_t score) {
  const PairArgs<scalar_t>& in = of.in;
  if (query >= in.queries || key >= in.keys) return 0;
  const int64_t at = group * in.queries + query;
  const scalar_t clipped = clip_score(in, score);
  const bool within = in.clip <= 0 || clipped == score;
  if (in.positive[at] == key) {
    return of.grad_positive[at] +
           (within ? of.grad_lse[at] * exp(clipped - of.lse[at]) : scalar_t(0));
  }
  if (!is_negative(in, group, query, key)) return 0;
  const scalar_t mean = of.grad_mean[at] / static_cast<scalar_t>(of.negatives[at]);
  if (!within) return mean;
  return mean + of.grad_lse[at] * exp(clipped - of.lse[at]) +
         of.grad_lse_negatives[at] * exp(clipped - of.lse_negatives[at]);
}

// What a block of the backward pass holds in shared memory.
template <typename scalar_t>
struct PairBackwardTile {
  PairTile<scalar_t> tile;
  scalar_t gradients[kSide][kSide + 1];  // of the tile's scores, times scale
};

// The gradients of a tile's scores, into shared memory.
template <bool kKeysAreRows, bool kGaussian, typename scalar_t>
__device__ void gradient_tile(const PairGradients<scalar_t>& of, int64_t group, int64_t first,
                              int64_t column, PairBackwardTile<scalar_t>& shared) {
  scalar_t score[kRowsPerWarp];
  score_tile<kKeysAreRows, kGaussian>(of.in, group, first, column, shared.tile, score);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int row = threadIdx.y * kRowsPerWarp + r;
    const int64_t a = first + row, b = column + threadIdx.x;
    shared.gradients[row][threadIdx.x] =
        of.in.scale *
        score_gradient(of, group, kKeysAreRows ? b : a, kKeysAreRows ? a : b, score[r]);
  }
  __syncwarp();  // a warp reads its own rows only; the next tile begins with a barrier
}

// Gradients of 32 rows, queries or keys, from the columns [begin, end): a lane to every 32nd
// coordinate, added up in global memory by the thread that owns them. A column is loaded once for
// the four rows of a warp.
template <bool kKeysAreRows, bool kGaussian, typename scalar_t>
__device__ void backward_rows(const PairGradients<scalar_t>& of, int64_t group, int64_t first,
                              int64_t begin, int64_t end, PairBackwardTile<scalar_t>& shared,
                              scalar_t* grad_row, scalar_t* grad_std) {
  const PairArgs<scalar_t>& in = of.in;
  const int64_t rows = kKeysAreRows ? in.keys : in.queries;
  const int64_t columns = kKeysAreRows ? in.queries : in.keys;
  const scalar_t* row_of = (kKeysAreRows ? in.key : in.query) + group * rows * in.width;
  const scalar_t* column_of = (kKeysAreRows ? in.query : in.key) + group * columns * in.width;
  const int first_of_warp = threadIdx.y * kRowsPerWarp;
  for (int64_t column = begin; column < end; column += kSide) {
    gradient_tile<kKeysAreRows, kGaussian>(of, group, first, column, shared);
    const int64_t left = columns - column;
    const int count = left < kSide ? static_cast<int>(left) : kSide;
    for (int64_t d = threadIdx.x; d < in.width; d += kSide) {
      scalar_t sum[kRowsPerWarp], std_sum[kRowsPerWarp], own[kRowsPerWarp], inverse[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int64_t row = first + first_of_warp + r, at = row * in.width + d;
        const bool exists = row < rows;
        const int64_t to = group * rows * in.width + at;
        sum[r] = exists && column > begin ? grad_row[to] : scalar_t(0);
        if constexpr (kGaussian) {
          own[r] = exists ? row_of[at] : scalar_t(0);
          if constexpr (kKeysAreRows) {
            inverse[r] = exists ? scalar_t(1) / in.std[to] : scalar_t(0);
            std_sum[r] = exists && column > begin ? grad_std[to] : scalar_t(0);
          }
        }
      }
#pragma unroll 4
      for (int j = 0; j < count; ++j) {
        const int64_t at = (column + j) * in.width + d;
        const scalar_t other = column_of[at];
        scalar_t std = 1;
        if constexpr (kGaussian && !kKeysAreRows) std = in.std[group * columns * in.width + at];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const scalar_t gradient = shared.gradients[first_of_warp + r][j];
          if constexpr (!kGaussian) {
            sum[r] += gradient * other;
          } else if constexpr (!kKeysAreRows) {
            sum[r] += gradient * ((other - own[r]) / (std * std));
          } else {
            const scalar_t error = (other - own[r]) * inverse[r];
            sum[r] += gradient * inverse[r] * error;
            std_sum[r] += gradient * inverse[r] * (error * error - scalar_t(1));
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int64_t row = first + first_of_warp + r;
        const int64_t to = (group * rows + row) * in.width + d;
        if (row >= rows) break;
        grad_row[to] = sum[r];
        if constexpr (kGaussian && kKeysAreRows) grad_std[to] = std_sum[r];
      }
    }
  }
}

// Gradients of 32 queries from a part of the keys, or of 32 keys from a part of the queries; where
// several blocks share rows, each leaves its part of the sums.
//
// Launch: grid (tiles of the more of queries and keys, groups, query_splits + key_splits), block
// (32, kPairWarps). Writes all gradients, or the parts of those that are shared.
template <bool kGaussian, typename scalar_t>
__global__ void pairwise_lse_backward_kernel(PairBackwardArgs<scalar_t> args) {
  __shared__ PairBackwardTile<scalar_t> shared;
  const PairArgs<scalar_t>& in = args.of.in;
  const int64_t group = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSide;
  const bool keys_are_rows = blockIdx.z >= args.query_splits;
  const int64_t splits = keys_are_rows ? args.key_splits : args.query_splits;
  const int64_t split = blockIdx.z - (keys_are_rows ? args.query_splits : 0);
  const int64_t rows = keys_are_rows ? in.keys : in.queries;
  const int64_t tiles = ((keys_are_rows ? in.queries : in.keys) + kSide - 1) / kSide;
  const int64_t begin = split * tiles / splits * kSide, end = (split + 1) * tiles / splits * kSide;
  if (first >= rows) return;
  const int64_t part = split * in.groups * rows * in.width;
  if (keys_are_rows) {
    backward_rows<true, kGaussian>(args.of, group, first, begin, end, shared,
                                   splits > 1 ? args.partial_key + part : args.grad_key,
                                   !kGaussian   ? nullptr
                                   : splits > 1 ? args.partial_std + part
                                                : args.grad_std);
  } else {
    backward_rows<false, kGaussian>(args.of, group, first, begin, end, shared,
                                    splits > 1 ? args.partial_query + part : args.grad_query,
                                    static_cast<scalar_t*>(nullptr));
  }
}

// Adds a number's parts, [splits, count], in order.
template <typename scalar_t>
__device__ void add_parts(const scalar_t* partial, int64_t splits, int64_t count, int64_t at,
                          scalar_t* to) {
  scalar_t sum = 0;
#pragma unroll 4
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * count + at];
  to[at] = sum;
}

// The parts of all gradients that have several.
//
// Launch: grid.x * kOffsetThreads >= groups * D * (B + 2 M). Writes those gradients.
template <typename scalar_t>
__global__ void pairwise_lse_backward_combine_kernel(PairBackwardArgs<scalar_t> args) {
  const PairArgs<scalar_t>& in = args.of.in;
  int64_t at = static_cast<int64_t>(blockIdx.x) * kOffsetThreads + threadIdx.x;
  const int64_t queries = in.groups * in.queries * in.width, keys = in.groups * in.keys * in.width;
  if (at < queries) {
    if (args.query_splits > 1) {
      add_parts(args.partial_query, args.query_splits, queries, at, args.grad_query);
    }
    return;
  }
  at -= queries;
  if (args.key_splits == 1) return;
  if (at < keys) {
    add_parts(args.partial_key, args.key_splits, keys, at, args.grad_key);
  } else if (at < 2 * keys && in.std != nullptr) {
    add_parts(args.partial_std, args.key_splits, keys, at - keys, args.grad_std);
  }
}

// Gradients of a group's products: a thread to a key, and to kProductRows queries.
//
// Launch: grid (ceil(M / kProductThreads), ceil(B / kProductRows)). Writes grad_products.
constexpr int kProductThreads = 256, kProductRows = 4;

template <typename scalar_t>
__global__ void pairwise_lse_products_kernel(PairProductsArgs<scalar_t> args) {
  const PairArgs<scalar_t>& in = args.of.in;
  const int64_t key = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x;
  if (key >= in.keys) return;
#pragma unroll
  for (int r = 0; r < kProductRows; ++r) {
    const int64_t query = static_cast<int64_t>(blockIdx.y) * kProductRows + r;
    if (query >= in.queries) break;
    const int64_t at = query * in.keys + key;
    args.grad_products[at] =
        in.scale * score_gradient(args.of, 0, query, key, in.scale * in.products[at]);
  }
}

}  // namespace mg2l
