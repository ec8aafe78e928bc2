// How kernels, launchers and binding of `pia_pool` divide the work: plain numbers, neither CUDA nor
// torch.
#pragma once

#include <cstdint>

namespace mg2l {

constexpr int kQueryParts = 64;          // parts of the inputs that the gradient of the query sums
constexpr int64_t kPoolBlocks = 512;     // wanted, where sets are few and long
constexpr int64_t kPoolInputs = 32;      // inputs of a block at least
constexpr int64_t kPoolSplitsMost = 64;  // what one block puts together

// Blocks that share a row's inputs, each with a softmax of its own.
inline int64_t pool_splits(int64_t rows, int64_t length) {
  int64_t splits = rows < 1 ? 1 : kPoolBlocks / rows;
  if (splits > length / kPoolInputs) splits = length / kPoolInputs;
  if (splits > kPoolSplitsMost) splits = kPoolSplitsMost;
  return splits < 1 ? 1 : splits;
}

// What a split leaves of a row: sums, the largest logit, the sum of exponentials.
inline int64_t pool_partial_width(int64_t width) { return width + 2; }

}  // namespace mg2l
