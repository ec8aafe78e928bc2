// Sums over the threads of a block.
#pragma once

#include "portable.cuh"

namespace mg2l {

// Sums over the threads of a block, of which each gets all, in one order. `shared` may be used
// again after a barrier.
template <int kCount, int kWarps>
__device__ void block_sums(double (&sums)[kCount], double (&shared)[kCount][kWarps]) {
  for (int which = 0; which < kCount; ++which) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      sums[which] += __shfl_xor_sync(0xffffffffu, sums[which], lanes);
    }
    if (threadIdx.x % 32 == 0) shared[which][threadIdx.x / 32] = sums[which];
  }
  __syncthreads();
  for (int which = 0; which < kCount; ++which) {
    sums[which] = 0;
    for (int warp = 0; warp < kWarps; ++warp) sums[which] += shared[which][warp];
  }
}

}  // namespace mg2l
