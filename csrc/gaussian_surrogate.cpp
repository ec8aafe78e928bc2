// CPU kernel of `gaussian_surrogate`.
#include "gaussian_surrogate.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "clipped_rows.h"

namespace mg2l {
namespace {

constexpr int64_t kBlock = 1024;       // rows whose log-probabilities stay in the first-level cache
constexpr int64_t kMinTaskBlocks = 4;  // below it a thread costs more

// What is summed over rows: the surrogate, what is measured beside it, and these; then, for each
// number of an action, the product of slope and square of the error.
enum Sum : int { kWeight = kSums, kSlope, kFirstNumber };

template <typename scalar_t>
struct GaussianArrays {
  int64_t agents, rows, width;
  scalar_t weight, clip;
  const scalar_t *mean, *action, *before, *advantages, *weights;  // weights null when not given
  const scalar_t* scale;                                          // [A, W]: 1 / std, 0 for padding
  const scalar_t* constant;  // [A]: what does not depend on the action, to be subtracted
  scalar_t* mean_slope;
};

// Numbers of an action whose count the compiler knows, or 0 for any.
template <int kWidth, typename scalar_t>
MG2L_INLINE void log_probs_of(const scalar_t* mean, const scalar_t* action, const scalar_t* scale,
                              scalar_t constant, int64_t rows, int64_t any, scalar_t* log_probs) {
  const int64_t width = kWidth ? kWidth : any;
  for (int64_t i = 0; i < rows; ++i) {
    scalar_t sum = 0;
    for (int64_t w = 0; w < width; ++w) {
      const scalar_t error = (action[i * width + w] - mean[i * width + w]) * scale[w];
      sum += error * error;
    }
    log_probs[i] = scalar_t(-0.5) * sum - constant;
  }
}

// Slopes of the means, from those of the log-probabilities; adds to the sums of each number.
template <int kWidth, typename scalar_t>
MG2L_INLINE void slopes_of(const scalar_t* mean, const scalar_t* action, const scalar_t* scale,
                           const scalar_t* slope, int64_t rows, int64_t any, scalar_t* mean_slope,
                           double* sums) {
  const int64_t width = kWidth ? kWidth : any;
  for (int64_t w = 0; w < width; ++w) {
    scalar_t total = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * width + w;
      const scalar_t error = (action[at] - mean[at]) * scale[w];
      const scalar_t to_error = error * slope[i];
      mean_slope[at] = to_error * scale[w];
      total += to_error * error;
    }
    sums[w] = static_cast<double>(total);
  }
}

template <int kWidth, int kBytes, typename scalar_t>
MG2L_INLINE void walk_block(const GaussianArrays<scalar_t>& a, int64_t agent, int64_t first,
                            int64_t rows, double* sums) {
  scalar_t log_probs[kBlock], slope[kBlock];
  const int64_t at = agent * a.rows + first;
  const scalar_t *mean = a.mean + at * a.width, *action = a.action + at * a.width;
  const scalar_t* scale = a.scale + agent * a.width;
  log_probs_of<kWidth>(mean, action, scale, a.constant[agent], rows, a.width, log_probs);
  const ClippedArrays<scalar_t> clipped{1,
                                        rows,
                                        a.weight,
                                        a.clip,
                                        0,
                                        log_probs,
                                        a.before + at,
                                        a.advantages + at,
                                        a.weights == nullptr ? nullptr : a.weights + at,
                                        slope};
  sum_block<SurrogateRows, kBytes>(clipped, 0, rows, sums);
  scalar_t weights = a.weight * static_cast<scalar_t>(rows), slopes = 0;
  if (a.weights != nullptr) {
    weights = 0;
    for (int64_t i = 0; i < rows; ++i) weights += a.weights[at + i];
  }
  for (int64_t i = 0; i < rows; ++i) slopes += slope[i];
  sums[kWeight] = static_cast<double>(weights);
  sums[kSlope] = static_cast<double>(slopes);
  slopes_of<kWidth>(mean, action, scale, slope, rows, a.width, a.mean_slope + at * a.width,
                    sums + kFirstNumber);
}

// Sums over the rows of each agent, [A, kFirstNumber + W]: a block at a time, which are then added
// in order, so that results do not depend on the number of threads.
template <int kWidth, typename scalar_t>
std::vector<double> sum_rows(const GaussianArrays<scalar_t>& a) {
  const int64_t blocks = (a.rows + kBlock - 1) / kBlock, count = kFirstNumber + a.width;
  std::vector<double> partial(static_cast<size_t>(a.agents * blocks * count));
  torch::stable::parallel_for(
      0, a.agents * blocks, kMinTaskBlocks, [&](int64_t begin, int64_t end) {
        run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i % blocks * kBlock;
            walk_block<kWidth, bytes>(a, i / blocks, first, std::min(kBlock, a.rows - first),
                                      partial.data() + i * count);
          }
        });
      });
  std::vector<double> sums(static_cast<size_t>(a.agents * count));
  for (int64_t i = 0; i < a.agents * blocks; ++i) {
    for (int64_t s = 0; s < count; ++s) {
      sums[static_cast<size_t>(i / blocks * count + s)] +=
          partial[static_cast<size_t>(i * count + s)];
    }
  }
  return sums;
}

template <typename scalar_t>
std::vector<double> sum_rows_of_width(const GaussianArrays<scalar_t>& a) {
  switch (a.width) {
    case 1:
      return sum_rows<1>(a);
    case 2:
      return sum_rows<2>(a);
    case 3:
      return sum_rows<3>(a);
    default:
      return sum_rows<0>(a);
  }
}

template <typename scalar_t>
void run(GaussianTensors& tensors, double weight, double clip, double entropy_coef) {
  const int64_t agents = tensors.agents, width = tensors.width;
  const auto* log_std = data<scalar_t>(std::as_const(tensors.log_std));
  const bool* own = data_or_null<bool>(tensors.own);
  std::vector<scalar_t> scale(static_cast<size_t>(agents * width));
  std::vector<scalar_t> constant(static_cast<size_t>(agents));
  for (int64_t agent = 0; agent < agents; ++agent) {
    for (int64_t w = 0; w < width; ++w) {
      const int64_t at = agent * width + w;
      if (own != nullptr && !own[at]) continue;
      const scalar_t value = log_std[tensors.shared ? w : at];
      scale[static_cast<size_t>(at)] = std::exp(-value);
      constant[static_cast<size_t>(agent)] += value + static_cast<scalar_t>(kLogSqrtTwoPi);
    }
  }
  const GaussianArrays<scalar_t> arrays{agents,
                                        tensors.rows,
                                        width,
                                        static_cast<scalar_t>(weight),
                                        static_cast<scalar_t>(clip),
                                        data<scalar_t>(std::as_const(tensors.mean)),
                                        data<scalar_t>(std::as_const(tensors.action)),
                                        data<scalar_t>(std::as_const(tensors.before)),
                                        data<scalar_t>(std::as_const(tensors.advantages)),
                                        data_or_null<scalar_t>(tensors.weights),
                                        scale.data(),
                                        constant.data(),
                                        data<scalar_t>(tensors.mean_slope)};
  const std::vector<double> sums = sum_rows_of_width(arrays);
  for (int64_t agent = 0; agent < agents; ++agent) {
    const double* of = sums.data() + agent * (kFirstNumber + width);
    int64_t numbers = 0;
    for (int64_t w = 0; w < width; ++w) {
      const bool has = own == nullptr || own[agent * width + w];
      numbers += has;
      data<scalar_t>(tensors.log_std_slope)[agent * width + w] = static_cast<scalar_t>(
          has ? of[kFirstNumber + w] - of[kSlope] - entropy_coef * of[kWeight] : 0);
    }
    // The density's constant and the entropy differ by a half for each number.
    const double entropy =
        (static_cast<double>(constant[static_cast<size_t>(agent)]) + 0.5 * numbers) * of[kWeight];
    data<scalar_t>(tensors.loss)[agent] = static_cast<scalar_t>(of[0] - entropy_coef * entropy);
    data<scalar_t>(tensors.surrogate)[agent] = static_cast<scalar_t>(of[0]);
    data<scalar_t>(tensors.entropy)[agent] = static_cast<scalar_t>(entropy);
    data<scalar_t>(tensors.kl)[agent] = static_cast<scalar_t>(of[1]);
    data<scalar_t>(tensors.clip_fraction)[agent] = static_cast<scalar_t>(of[2]);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_surrogate_cpu(
    const Tensor& mean, const Tensor& log_std, const Tensor& action, const Tensor& before,
    const Tensor& advantages, const std::optional<Tensor>& weights, double weight, double clip,
    double entropy_coef, const std::optional<Tensor>& own) {
  check_gaussian_surrogate(mean, log_std, action, before, advantages, weights, clip, entropy_coef,
                           own);
  GaussianTensors tensors(mean, log_std, action, before, advantages, weights, own);
  for_floating(mean.scalar_type(),
               [&](auto zero) { run<decltype(zero)>(tensors, weight, clip, entropy_coef); });
  return {tensors.loss,          tensors.surrogate,  tensors.entropy,      tensors.kl,
          tensors.clip_fraction, tensors.mean_slope, tensors.log_std_slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("gaussian_surrogate", TORCH_BOX(&mg2l::gaussian_surrogate_cpu));
}
