// Kernels to test the runtime itself with: what a kernel can get wrong is all here, done right.
#pragma once

#include <cstdint>

#include "portable.cuh"

namespace self_test {

using mg2l::dynamic_shared;

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kBins = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sum of each row of x[rows, columns] with a tree in shared memory. Launch: a block of kBlock a
// row.
__global__ void row_sum_kernel(int64_t columns, const float* x, float* sums) {
  __shared__ float partial[kBlock];
  float sum = 0;
  for (int64_t column = threadIdx.x; column < columns; column += kBlock) {
    sum += x[blockIdx.x * columns + column];
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = kBlock / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

// Inclusive scan of each row with shuffles inside warps. Launch: a block of kBlock a row.
__global__ void row_scan_kernel(int64_t columns, const float* x, float* scan) {
  __shared__ float warp_total[kWarps];
  __shared__ float base;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) base = 0;
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int64_t column = first + threadIdx.x;
    float sum = column < columns ? x[blockIdx.x * columns + column] : 0.0F;
    for (int distance = 1; distance < 32; distance *= 2) {
      const float before = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += before;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads();
    sum += base;
    for (int earlier = 0; earlier < warp; ++earlier) sum += warp_total[earlier];
    if (column < columns) scan[blockIdx.x * columns + column] = sum;
    __syncthreads();
    if (threadIdx.x == kBlock - 1) base = sum;
  }
}

// Counts x[4 * quads] in [0, 1) into kBins bins, on top of what counts holds. Any launch.
__global__ void histogram_kernel(int64_t quads, const float4* x, int32_t* counts) {
  __shared__ int32_t block_counts[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) block_counts[bin] = 0;
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; at < quads; at += stride) {
    const float4 quad = x[at];
    const float values[4] = {quad.x, quad.y, quad.z, quad.w};
    for (const float value : values) {
      const int bin = min(kBins - 1, static_cast<int>(value * kBins));
      atomicAdd(&block_counts[bin], 1);
    }
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
    atomicAdd(&counts[bin], block_counts[bin]);
  }
}

// Transposes tiles of 32 x 32 inside a warp with __syncwarp alone. Launch: a warp a tile.
__global__ void warp_transpose_kernel(const float* x, float* transposed) {
  __shared__ float tile[32][33];
  const int64_t first = blockIdx.x * int64_t{32 * 32};
  for (int row = 0; row < 32; ++row) tile[row][threadIdx.x] = x[first + row * 32 + threadIdx.x];
  __syncwarp();
  for (int row = 0; row < 32; ++row) {
    transposed[first + row * 32 + threadIdx.x] = tile[threadIdx.x][row];
  }
}

// How many of each warp's values are positive, and the warp's largest, to every lane. Ragged last
// warp: only lanes that hold a value take part. Launch: any number of threads >= count.
__global__ void warp_vote_kernel(int64_t count, const float* x, int32_t* positive, float* largest) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const unsigned lanes = __ballot_sync(kAllLanes, at < count);
  if (at >= count) return;
  const float value = x[at];
  positive[at] = __popc(__ballot_sync(lanes, value > 0));
  float lane_max = value;
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    lane_max = max(lane_max, __shfl_sync(lanes, value, __ffs(left) - 1));
  }
  largest[at] = lane_max;
}

// Reverses each row of x[rows, columns] through dynamic shared memory of 4 * columns bytes.
// Launch: a block a row, of columns threads.
__global__ void reverse_kernel(const float* x, float* reversed) {
  float* row = static_cast<float*>(dynamic_shared());
  const int64_t first = blockIdx.x * int64_t{blockDim.x};
  row[threadIdx.x] = x[first + threadIdx.x];
  __syncthreads();
  reversed[first + threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

// Uses the last number of its static and of its dynamic shared memory.
// Launch: one thread.
template <int kFloats>
__global__ void much_shared_kernel(int64_t dynamic_floats, float* y) {
  __shared__ float row[kFloats];
  float* more = static_cast<float*>(dynamic_shared());
  row[kFloats - 1] = 1;
  if (dynamic_floats > 0) more[dynamic_floats - 1] = 1;
  y[0] = row[kFloats - 1];
}

// Reads two neighbouring floats at once, from an address that only floats may have if `shift` is 1.
__global__ void pairs_kernel(int64_t shift, const float* x, double* pairs) {
  pairs[threadIdx.x] = reinterpret_cast<const double*>(x + shift)[threadIdx.x];
}

}  // namespace self_test
