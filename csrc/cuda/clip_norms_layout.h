// How kernels, launchers and binding of `clip_norms` divide the work: plain numbers, neither CUDA
// nor torch.
#pragma once

#include <cstdint>

namespace mg2l {

constexpr int kClipThreads = 256;
constexpr int64_t kClipNumbers = 8;      // of a thread, where there are enough
constexpr int64_t kClipBlocksMost = 64;  // of a group
constexpr double kClipFloor = 1e-6;      // added to a norm that is divided by, as in torch

// Blocks that share the numbers of a group.
inline int64_t clip_blocks(int64_t numbers) {
  const int64_t each = kClipThreads * kClipNumbers, blocks = (numbers + each - 1) / each;
  if (blocks > kClipBlocksMost) return kClipBlocksMost;
  return blocks < 1 ? 1 : blocks;
}

}  // namespace mg2l
