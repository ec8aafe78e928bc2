// Kernels of `contrast`: plain pointers, no torch header.
//
// A warp for each row computes its scores, its divergence and its gradient, and writes the factor
// by which it enters the gradient of each key. Then a block for each key sums over the rows, and
// one more sums what was measured of them, each in one order. A few hundred rows and some tens of
// keys keep either busy for some microseconds, about what a launch takes.
#pragma once

#include <cmath>
#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kContrastWarp = 32;      // threads of a row
constexpr int kContrastThreads = 256;  // threads of a key, and of what is measured
constexpr int kContrastWarps = kContrastThreads / 32;
constexpr int kMeasured = 3;                 // log-probability, hit, divergence
constexpr double kContrastSmallest = 1e-12;  // norm that vectors are divided by at least
constexpr double kContrastLinear = 20.0;     // from here on softplus(x) is x

template <typename scalar_t>
__device__ scalar_t warp_sum(scalar_t value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// Norm that a vector is divided by; NaN stays.
template <typename scalar_t>
__device__ scalar_t divisor(scalar_t square) {
  const scalar_t norm = sqrt(square), least = static_cast<scalar_t>(kContrastSmallest);
  return norm < least ? least : norm;
}

template <typename scalar_t>
__device__ scalar_t square_of(const scalar_t* x, int64_t count) {
  scalar_t square = 0;
  for (int64_t d = 0; d < count; ++d) square += x[d] * x[d];
  return square;
}

// Launch: block kContrastWarp, grid (rows, groups). Writes factors, measured and raw_slope.
template <typename scalar_t>
__global__ void contrast_rows_kernel(ContrastArgs<scalar_t> args) {
  const int64_t row = blockIdx.x, group = blockIdx.y, at = group * args.rows + row;
  const int64_t keys = args.keys_count, width = args.width, lane = threadIdx.x;
  const scalar_t* mean = args.raw + at * 2 * width;
  scalar_t* slope = args.raw_slope + at * 2 * width;
  scalar_t* factor = args.factors + at * keys;
  const scalar_t share = scalar_t(1) / static_cast<scalar_t>(args.rows);

  scalar_t square = 0, divergence = 0;
  for (int64_t d = lane; d < width; d += kContrastWarp) {
    square += mean[d] * mean[d];
    const scalar_t x = mean[width + d];
    const bool linear = x > static_cast<scalar_t>(kContrastLinear);
    const scalar_t e = exp(x < 0 ? x : -x);  // at most 1, and NaN of NaN
    const scalar_t soft = linear ? x : (x < 0 ? scalar_t(0) : x) + log1p(e);
    const scalar_t sigmoid = linear ? scalar_t(1) : (x < 0 ? e : scalar_t(1)) / (1 + e);
    const scalar_t std = soft + args.std_floor;
    divergence += (std * std - 1) / 2 - log(std);
    slope[width + d] = args.kl_weight * share * (std - 1 / std) * sigmoid;
  }
  square = warp_sum(square);
  divergence = warp_sum(divergence);
  const scalar_t norm = divisor(square);
  // The mean is sqrt(D) u, and u = raw mean / norm.
  divergence += square / norm / norm * static_cast<scalar_t>(width) / 2;

  scalar_t most = -INFINITY;
  for (int64_t k = lane; k < keys; k += kContrastWarp) {
    const scalar_t* key = args.keys + k * width;
    scalar_t product = 0;
    for (int64_t d = 0; d < width; ++d) product += mean[d] / norm * key[d];
    factor[k] = product / divisor(square_of(key, width)) / args.temperature;
    most = factor[k] > most ? factor[k] : most;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const scalar_t other = __shfl_xor_sync(0xffffffffu, most, lanes);
    most = other > most ? other : most;
  }
  __syncwarp();
  const int64_t own = args.positive[row];
  const bool known = own >= 0 && own < keys;
  const scalar_t positive = known ? factor[own] : static_cast<scalar_t>(NAN);
  scalar_t total = 0;
  bool beaten = !(positive == positive);
  for (int64_t k = lane; k < keys; k += kContrastWarp) {
    total += exp(factor[k] - most);
    beaten = beaten || factor[k] > positive || (k < own && factor[k] == positive);
  }
  total = warp_sum(total);
  beaten = __any_sync(0xffffffffu, beaten);
  __syncwarp();  // all have read the score of the own key
  if (lane == 0) {
    scalar_t* measured = args.measured + group * kMeasured * args.rows + row;
    measured[0] = positive - most - log(total);
    measured[args.rows] = beaten ? scalar_t(0) : scalar_t(1);
    measured[2 * args.rows] = divergence;
  }
  for (int64_t k = lane; k < keys; k += kContrastWarp) {
    const scalar_t miss = exp(factor[k] - most) / total - (k == own ? scalar_t(1) : scalar_t(0));
    const scalar_t length = divisor(square_of(args.keys + k * width, width));
    factor[k] = miss * share / (args.temperature * norm * length);
  }
  __syncwarp();
  // Through u, on which the divergence does not depend unless the mean vanishes.
  scalar_t along = 0;
  for (int64_t d = lane; d < width; d += kContrastWarp) {
    scalar_t sum = 0;
    for (int64_t k = 0; k < keys; ++k) sum += factor[k] * args.keys[k * width + d];
    slope[d] = sum;
    along += sum * (mean[d] / norm);
  }
  along = warp_sum(along);
  if (norm <= static_cast<scalar_t>(kContrastSmallest)) {
    along = -args.kl_weight * share * static_cast<scalar_t>(width) / norm;
  }
  for (int64_t d = lane; d < width; d += kContrastWarp) slope[d] -= along * (mean[d] / norm);
}

// Launch: block kContrastThreads, grid (keys + 1, groups), after the rows. Writes key_slope and, in
// the last block of a group, its results.
template <typename scalar_t>
__global__ void contrast_keys_kernel(ContrastArgs<scalar_t> args) {
  __shared__ double shared[kContrastWarps][32];
  const int64_t k = blockIdx.x, group = blockIdx.y, rows = args.rows, width = args.width;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (k == args.keys_count) {
    const scalar_t* measured = args.measured + group * kMeasured * rows;
    for (int which = 0; which < kMeasured; ++which) {
      double sum = 0;
      for (int64_t row = threadIdx.x; row < rows; row += kContrastThreads) {
        sum += static_cast<double>(measured[which * rows + row]);
      }
      sum = warp_sum(sum);
      if (lane == 0) shared[warp][which] = sum;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    double means[kMeasured] = {};
    for (int which = 0; which < kMeasured; ++which) {
      for (int w = 0; w < kContrastWarps; ++w) means[which] += shared[w][which];
      means[which] /= static_cast<double>(rows);
    }
    const double bound = log(static_cast<double>(args.keys_count)) + means[0];
    args.bound[group] = static_cast<scalar_t>(bound);
    args.accuracy[group] = static_cast<scalar_t>(means[1]);
    args.kl[group] = static_cast<scalar_t>(means[2]);
    args.loss[group] =
        static_cast<scalar_t>(static_cast<double>(args.kl_weight) * means[2] - bound);
    return;
  }
  const scalar_t* key = args.keys + k * width;
  scalar_t* slope = args.key_slope + (group * args.keys_count + k) * width;
  const scalar_t norm = divisor(square_of(key, width));
  scalar_t along = 0;  // of the first warp, whose lanes walk the width
  for (int64_t first = 0; first < width; first += 32) {
    const int64_t d = first + lane;
    double sum = 0;
    for (int64_t row = warp; row < rows && d < width; row += kContrastWarps) {
      const int64_t at = group * rows + row;
      sum += static_cast<double>(args.factors[at * args.keys_count + k] *
                                 args.raw[at * 2 * width + d]);
    }
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && d < width) {
      double whole = 0;
      for (int w = 0; w < kContrastWarps; ++w) whole += shared[w][lane];
      slope[d] = static_cast<scalar_t>(whole);
      along += slope[d] * (key[d] / norm);
    }
    __syncthreads();
  }
  if (warp > 0) return;
  along = warp_sum(along);
  if (norm <= static_cast<scalar_t>(kContrastSmallest)) return;  // a constant is divided by
  for (int64_t d = lane; d < width; d += 32) slope[d] -= along * (key[d] / norm);
}

}  // namespace mg2l
