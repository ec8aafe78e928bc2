// Kernels of `stacked_mlp` and `stacked_mlp_backward`: plain pointers, no torch header.
//
// Products are cuBLAS's, called by the binding; here is what lies between them, in one pass over
// each row: bias, activation and LayerNorm, and their gradients. One warp works on a row, its lanes
// on neighbouring units, so that loads and stores coalesce; a row is read from memory once and then
// from the first-level cache. Every sum is taken in an order of its own: no atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kMlpWarp = 32;
constexpr int kMlpRows = 4;  // rows of a block, a warp each

// The sum over a warp, in every lane.
template <typename scalar_t>
__device__ scalar_t row_sum(scalar_t value) {
  for (int lanes = kMlpWarp / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// A row: bias, and unless the layer is linear alone activation, moments and LayerNorm.
//
// Launch: grid.x * kMlpRows >= groups * rows, block (32, kMlpRows). Writes features and moments.
template <typename scalar_t>
__global__ void stacked_mlp_kernel(MlpForwardArgs<scalar_t> args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kMlpRows + threadIdx.y;
  if (row >= args.groups * args.rows) return;
  const int64_t units = args.units;
  const scalar_t* product = args.product + row * units;
  const scalar_t* bias = args.bias + row / args.rows * units;
  scalar_t* features = args.features + row * units;
  scalar_t sum = 0;
  for (int64_t i = threadIdx.x; i < units; i += kMlpWarp) {
    scalar_t h = product[i] + bias[i];
    if (args.normalise) {
      if (args.relu) {
        h = h < 0 ? scalar_t(0) : h;
      } else {
        h = tanh(h);
      }
    }
    features[i] = h;
    sum += h;
  }
  if (!args.normalise) return;
  const scalar_t mean = row_sum(sum) / static_cast<scalar_t>(units);
  scalar_t squares = 0;
  for (int64_t i = threadIdx.x; i < units; i += kMlpWarp) {
    const scalar_t distance = features[i] - mean;
    squares += distance * distance;
  }
  const scalar_t variance = row_sum(squares) / static_cast<scalar_t>(units);
  const scalar_t inverse = scalar_t(1) / sqrt(variance + args.epsilon);
  for (int64_t i = threadIdx.x; i < units; i += kMlpWarp) {
    features[i] = (features[i] - mean) * inverse;
  }
  if (args.moments != nullptr && threadIdx.x == 0) {
    args.moments[2 * row] = mean;
    args.moments[2 * row + 1] = inverse;
  }
}

// A row: gradients of normalised features become those of the product before the bias.
//
// Launch: grid.x * kMlpRows >= groups * rows, block (32, kMlpRows). Writes grad_product.
template <typename scalar_t>
__global__ void stacked_mlp_backward_kernel(MlpBackwardArgs<scalar_t> args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kMlpRows + threadIdx.y;
  if (row >= args.groups * args.rows) return;
  const int64_t units = args.units;
  const scalar_t* grad = args.grad + row * units;
  const scalar_t* features = args.features + row * units;
  scalar_t sum = 0, dot = 0;
  for (int64_t i = threadIdx.x; i < units; i += kMlpWarp) {
    sum += grad[i];
    dot += grad[i] * features[i];
  }
  const scalar_t offset = row_sum(sum) / static_cast<scalar_t>(units);
  const scalar_t slope = row_sum(dot) / static_cast<scalar_t>(units);
  const scalar_t mean = args.moments[2 * row], inverse = args.moments[2 * row + 1];
  const scalar_t zero = (scalar_t(0) - mean) * inverse;  // what an activation of 0 became
  for (int64_t i = threadIdx.x; i < units; i += kMlpWarp) {
    scalar_t to = (grad[i] - offset - features[i] * slope) * inverse;
    if (args.relu) {
      to = features[i] <= zero ? scalar_t(0) : to;
    } else {
      const scalar_t h = features[i] / inverse + mean;
      to *= scalar_t(1) - h * h;
    }
    args.grad_product[row * units + i] = to;
  }
}

}  // namespace mg2l
