// How kernels, launchers and binding of `pairwise_lse` divide the work, and which way scores are
// made: plain numbers, neither CUDA nor torch.
#pragma once

#include <cstdint>

namespace mg2l {

constexpr int kSide = 32;                       // rows and columns of a tile, and a step of D
constexpr int64_t kPairBlocks = 512;            // wanted, where rows are few
constexpr int64_t kPairTiles = 4;               // of a block at least, where several share rows
constexpr int64_t kPairSplitsMost = 32;         // what one warp puts together
constexpr int64_t kProductsFrom = 1 << 18;      // scores of a group: docs/kernels.md
constexpr int64_t kProductScores = 1 << 22;     // of a chunk: 16 MiB, which stay in the L2 cache
constexpr int64_t kProductQueriesMost = 65536;  // of a chunk: what a grid takes

inline int64_t pair_tiles(int64_t count) { return (count + kSide - 1) / kSide; }

// Blocks that share a tile of rows, each with a part of the columns.
inline int64_t pair_splits(int64_t groups, int64_t rows, int64_t columns) {
  const int64_t blocks = groups * pair_tiles(rows);
  int64_t splits = blocks < 1 ? 1 : kPairBlocks / blocks;
  const int64_t most = pair_tiles(columns) / kPairTiles;
  if (splits > most) splits = most;
  if (splits > kPairSplitsMost) splits = kPairSplitsMost;
  return splits < 1 ? 1 : splits;
}

// Queries whose products with all keys are made at a time.
inline int64_t product_queries(int64_t queries, int64_t keys) {
  int64_t most = kProductScores / keys;
  if (most > kProductQueriesMost) most = kProductQueriesMost;
  if (most < 1) most = 1;
  return queries < most ? queries : most;
}

}  // namespace mg2l
