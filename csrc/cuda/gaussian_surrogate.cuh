// Kernel of `gaussian_surrogate`: plain pointers, no torch header.
//
// As in clipped.cuh, one block for each agent: its threads walk the rows, making the log-density of
// each, the slope of the surrogate and those of its means. Then they walk their own rows again,
// once for each number of an action, for the slope of its standard deviation. Numbers of an action
// lie behind each other, so a warp reads a stretch of memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "clipped.cuh"

namespace mg2l {

constexpr int kGaussianSums = 5;  // surrogate, kl, fraction of clipped rows, weights, slopes
constexpr double kHalfLogTwoPi = 0.91893853320467274178;

// One over the standard deviation of a number of an action; 0 where the agent does not have it.
template <typename scalar_t>
__device__ scalar_t gaussian_scale(const GaussianArgs<scalar_t>& args, int64_t agent, int64_t w) {
  if (args.own != nullptr && args.own[agent * args.width + w] == 0) return 0;
  return exp(-args.log_std[args.shared ? w : agent * args.width + w]);
}

// Launch: block kClippedThreads, grid.x = agents. Writes every output, and slope.
template <typename scalar_t>
__global__ void gaussian_surrogate_kernel(GaussianArgs<scalar_t> args) {
  __shared__ double shared[kGaussianSums][kClippedWarps];
  const int64_t agent = blockIdx.x, start = agent * args.rows, width = args.width;
  scalar_t constant = 0;
  int numbers = 0;
  for (int64_t w = 0; w < width; ++w) {
    if (args.own != nullptr && args.own[agent * width + w] == 0) continue;
    constant +=
        args.log_std[args.shared ? w : agent * width + w] + static_cast<scalar_t>(kHalfLogTwoPi);
    ++numbers;
  }
  double sums[kGaussianSums] = {};
  for (int64_t i = threadIdx.x; i < args.rows; i += kClippedThreads) {
    const int64_t at = start + i;
    scalar_t square = 0;
    for (int64_t w = 0; w < width; ++w) {
      const scalar_t error = (args.action[at * width + w] - args.mean[at * width + w]) *
                             gaussian_scale(args, agent, w);
      square += error * error;
    }
    const scalar_t log_prob = scalar_t(-0.5) * square - constant;
    const ClippedRow<scalar_t> row =
        surrogate_row(log_prob - args.before[at], args.advantages[at], args.clip);
    const scalar_t weight = args.weights == nullptr ? args.weight : args.weights[at];
    const scalar_t slope = row.slope * weight;
    args.slope[at] = slope;
    for (int64_t w = 0; w < width; ++w) {
      const scalar_t scale = gaussian_scale(args, agent, w);
      const scalar_t error = (args.action[at * width + w] - args.mean[at * width + w]) * scale;
      args.mean_slope[at * width + w] = error * slope * scale;
    }
    sums[0] += static_cast<double>(row.loss * weight);
    sums[1] += static_cast<double>(row.kl * weight);
    sums[2] += static_cast<double>(row.clipped * weight);
    sums[3] += static_cast<double>(weight);
    sums[4] += static_cast<double>(slope);
  }
  block_sums(sums, shared);
  const double to_entropy = static_cast<double>(args.entropy_coef) * sums[3];
  for (int64_t w = 0; w < width; ++w) {
    const scalar_t scale = gaussian_scale(args, agent, w);
    double one[kGaussianSums] = {};  // the first of which is used
    for (int64_t i = threadIdx.x; i < args.rows; i += kClippedThreads) {
      const int64_t at = start + i;
      const scalar_t error = (args.action[at * width + w] - args.mean[at * width + w]) * scale;
      one[0] += static_cast<double>(args.slope[at] * error * error);
    }
    __syncthreads();  // all have read the sums before
    block_sums(one, shared);
    if (threadIdx.x > 0) continue;
    const bool has = args.own == nullptr || args.own[agent * width + w] != 0;
    args.log_std_slope[agent * width + w] =
        has ? static_cast<scalar_t>(one[0] - sums[4] - to_entropy) : scalar_t(0);
  }
  if (threadIdx.x > 0) return;
  // The density's constant and the entropy differ by a half for each number.
  const double entropy = (static_cast<double>(constant) + 0.5 * numbers) * sums[3];
  args.loss[agent] =
      static_cast<scalar_t>(sums[0] - static_cast<double>(args.entropy_coef) * entropy);
  args.surrogate[agent] = static_cast<scalar_t>(sums[0]);
  args.entropy[agent] = static_cast<scalar_t>(entropy);
  args.kl[agent] = static_cast<scalar_t>(sums[1]);
  args.clip_fraction[agent] = static_cast<scalar_t>(sums[2]);
}

}  // namespace mg2l
