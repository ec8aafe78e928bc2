// CPU kernels of `gae` and `gae_backward`.
#include "gae.h"

#include <algorithm>
#include <tuple>

#include "simd.h"

namespace mg2l {
namespace {

constexpr int64_t kTile = 4096;          // columns walked together: long rows, state in L1 and L2
constexpr int kGroup = 4;                // steps that a column takes together, in registers
constexpr int64_t kPartialSteps = 16;    // steps whose moments are summed in scalar_t
constexpr int64_t kBlock = 64;           // columns are split between threads in multiples of this
constexpr int64_t kMinTaskWork = 16384;  // elements per task; below it a thread costs more

template <typename scalar_t>
struct GaeArrays {
  int64_t steps, columns;
  scalar_t gamma, decay;  // decay = gamma * lambda
  const scalar_t *rewards, *values;
  const uint8_t *terminated, *truncated;
  const scalar_t *final_values, *value_mean, *value_std;  // null when not given
  scalar_t *advantages, *returns;
  double* moments;
};

// How a group of steps ends, packed: two bits of a column's word for each step, the latest first.
enum Ending : int32_t { kTerminated = 1, kTruncated = 2 };
using Endings = uint16_t;  // twice a byte: two vectors of float meet one of words
constexpr int kEndingBits = 2;
constexpr Endings kAnyTruncated = 0xaa;
static_assert(kGroup * kEndingBits <= 8);

// What one group of steps hands to the next, and the endings of the current group.
template <typename scalar_t>
struct GaeTile {
  alignas(64) scalar_t carry[kTile];
  alignas(64) scalar_t sum[kTile];  // of the advantages since they were last added to total
  alignas(64) scalar_t square_sum[kTile];
  alignas(64) double total[kTile];
  alignas(64) double square_total[kTile];
  alignas(64) Endings endings[kTile];
};

// Packs the flags of kSteps steps, from the latest back.
template <int kSteps>
MG2L_INLINE void pack_endings(const uint8_t* terminated, const uint8_t* truncated, int64_t stride,
                              Endings* endings, int64_t count) {
#pragma GCC ivdep
  for (int64_t n = 0; n < count; ++n) {
    uint8_t word = 0;
#pragma GCC unroll 8
    for (int back = kSteps - 1; back >= 0; --back) {
      word = static_cast<uint8_t>(word + word + truncated[n - back * stride]);
      word = static_cast<uint8_t>(word + word + terminated[n - back * stride]);
    }
    endings[n] = word;
  }
}

// Walks the columns [first, first + count) back through kSteps steps, of which `last_step` is the
// latest. Between these steps the state of a column stays in registers.
template <int kSteps, bool kScaled, bool kFinal, typename scalar_t>
MG2L_INLINE void gae_walk(const GaeArrays<scalar_t>& a, GaeTile<scalar_t>& tile, int64_t last_step,
                          int64_t first, int64_t count) {
  const scalar_t gamma = a.gamma, decay = a.decay;
#pragma GCC ivdep
  for (int64_t n = 0; n < count; ++n) {
    const scalar_t std = kScaled ? a.value_std[first + n] : scalar_t(1);
    const scalar_t mean = kScaled ? a.value_mean[first + n] : scalar_t(0);
    const auto denormalise = [&](scalar_t value) MG2L_INLINE_LAMBDA {
      return kScaled ? value * std + mean : value;
    };
    const int32_t endings = tile.endings[n];
    scalar_t carry = tile.carry[n], sum = tile.sum[n], square_sum = tile.square_sum[n];
    scalar_t next_value = denormalise(a.values[(last_step + 1) * a.columns + first + n]);
#pragma GCC unroll 8
    for (int back = 0; back < kSteps; ++back) {
      const int64_t at = (last_step - back) * a.columns + first + n;
      const int32_t terminated = endings & (kTerminated << kEndingBits * back);
      const int32_t truncated = endings & (kTruncated << kEndingBits * back);
      const scalar_t value = denormalise(a.values[at]);
      if constexpr (kFinal) {
        const scalar_t final_value = denormalise(a.final_values[at]);
        next_value = truncated ? final_value : next_value;
      }
      next_value = terminated ? scalar_t(0) : next_value;
      carry = (terminated | truncated) ? scalar_t(0) : carry;
      carry = a.rewards[at] - value + gamma * next_value + decay * carry;
      a.advantages[at] = carry;
      a.returns[at] = carry + value;
      sum += carry;
      square_sum += carry * carry;
      next_value = value;
    }
    tile.carry[n] = carry;
    tile.sum[n] = sum;
    tile.square_sum[n] = square_sum;
  }
}

template <int kSteps, bool kScaled, typename scalar_t>
MG2L_INLINE void gae_steps(const GaeArrays<scalar_t>& a, GaeTile<scalar_t>& tile, int64_t last_step,
                           int64_t first, int64_t count) {
  const int64_t start = last_step * a.columns + first;
  pack_endings<kSteps>(a.terminated + start, a.truncated + start, a.columns, tile.endings, count);
  // Truncations are rare: only steps that have one pay for reading final_values.
  Endings any = 0;
  if (a.final_values != nullptr) {
    for (int64_t n = 0; n < count; ++n) any |= tile.endings[n];
  }
  if (any & kAnyTruncated) {
    gae_walk<kSteps, kScaled, true>(a, tile, last_step, first, count);
  } else {
    gae_walk<kSteps, kScaled, false>(a, tile, last_step, first, count);
  }
}

// Walks the columns [begin, end) back through time, kGroup steps at a time: each input is read once
// and each output written once. Where a column falls among the lanes of a vector does not depend on
// how the columns are split between threads (kBlock), and so neither do the results.
template <bool kScaled, typename scalar_t>
MG2L_INLINE void gae_columns(const GaeArrays<scalar_t>& arrays, int64_t begin, int64_t end) {
  const GaeArrays<scalar_t> a = arrays;  // a copy that no store can alias
  GaeTile<scalar_t> tile;
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = std::min(kTile, end - first);
    for (int64_t n = 0; n < count; ++n) {
      tile.carry[n] = tile.sum[n] = tile.square_sum[n] = 0;
      tile.total[n] = tile.square_total[n] = 0;
    }
    int64_t step = a.steps - 1;
    while (step >= 0) {
      const int64_t stop = std::max<int64_t>(step - kPartialSteps, -1);
      for (; step - kGroup >= stop; step -= kGroup) {
        gae_steps<kGroup, kScaled>(a, tile, step, first, count);
      }
      for (; step > stop; --step) gae_steps<1, kScaled>(a, tile, step, first, count);
      for (int64_t n = 0; n < count; ++n) {
        tile.total[n] += static_cast<double>(tile.sum[n]);
        tile.square_total[n] += static_cast<double>(tile.square_sum[n]);
        tile.sum[n] = tile.square_sum[n] = 0;
      }
    }
    std::copy(tile.total, tile.total + count, a.moments + first);
    std::copy(tile.square_total, tile.square_total + count, a.moments + a.columns + first);
  }
}

// Calls body(begin, end) for parts of the columns, in parallel.
template <typename Body>
void parallel_columns(int64_t steps, int64_t columns, const Body& body) {
  const int64_t blocks = (columns + kBlock - 1) / kBlock;
  const int64_t work = std::max<int64_t>(steps, 1) * kBlock;
  const int64_t grain = std::max<int64_t>((kMinTaskWork + work - 1) / work, 1);
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    body(begin * kBlock, std::min(columns, end * kBlock));
  });
}

template <typename scalar_t>
void gae_kernel(GaeTensors& tensors, double gamma, double gae_lambda) {
  const GaeArrays<scalar_t> arrays{tensors.steps,
                                   tensors.columns,
                                   static_cast<scalar_t>(gamma),
                                   static_cast<scalar_t>(gamma * gae_lambda),
                                   data<scalar_t>(std::as_const(tensors.rewards)),
                                   data<scalar_t>(std::as_const(tensors.values)),
                                   data<uint8_t>(std::as_const(tensors.terminated)),
                                   data<uint8_t>(std::as_const(tensors.truncated)),
                                   data_or_null<scalar_t>(tensors.final_values),
                                   data_or_null<scalar_t>(tensors.value_mean),
                                   data_or_null<scalar_t>(tensors.value_std),
                                   data<scalar_t>(tensors.advantages),
                                   data<scalar_t>(tensors.returns),
                                   data<double>(tensors.moments)};
  parallel_columns(tensors.steps, tensors.columns, [&](int64_t begin, int64_t end) {
    run_simd([&](auto) MG2L_INLINE_LAMBDA {
      if (arrays.value_mean != nullptr) {
        gae_columns<true>(arrays, begin, end);
      } else {
        gae_columns<false>(arrays, begin, end);
      }
    });
  });
}

template <typename scalar_t>
struct GaeBackwardArrays {
  int64_t steps, columns;
  scalar_t gamma, decay;
  const scalar_t *grad_advantages, *grad_returns;
  const uint8_t *terminated, *truncated;
  scalar_t *grad_rewards, *grad_values, *grad_final_values;  // the last null when not wanted
};

// The adjoint walks forward in time. `flow[n]` is the gradient of the TD error of the step before
// and `boot[n]` what that step hands to this step's value as its bootstrap.
template <typename scalar_t>
MG2L_INLINE void gae_backward_columns(const GaeBackwardArrays<scalar_t>& a, int64_t begin,
                                      int64_t end) {
  alignas(64) scalar_t flow[kTile];
  alignas(64) scalar_t boot[kTile];
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = std::min(kTile, end - first);
    std::fill(flow, flow + count, scalar_t(0));
    std::fill(boot, boot + count, scalar_t(0));
    for (int64_t step = 0; step < a.steps; ++step) {
      const int64_t at = step * a.columns + first;
      for (int64_t n = 0; n < count; ++n) {
        const bool terminated = a.terminated[at + n], truncated = a.truncated[at + n];
        const scalar_t grad_return = a.grad_returns[at + n];
        const scalar_t grad = a.grad_advantages[at + n] + grad_return + flow[n];
        const bool bootstraps_final = a.grad_final_values != nullptr && truncated;
        a.grad_rewards[at + n] = grad;
        a.grad_values[at + n] = grad_return - grad + boot[n];
        boot[n] = terminated || bootstraps_final ? scalar_t(0) : a.gamma * grad;
        flow[n] = terminated || truncated ? scalar_t(0) : a.decay * grad;
        if (a.grad_final_values != nullptr) {
          a.grad_final_values[at + n] = truncated && !terminated ? a.gamma * grad : scalar_t(0);
        }
      }
    }
    std::copy(boot, boot + count, a.grad_values + a.steps * a.columns + first);
  }
}

template <typename scalar_t>
void gae_backward_kernel(GaeBackwardTensors& tensors, double gamma, double gae_lambda,
                         bool has_final_values) {
  const GaeBackwardArrays<scalar_t> arrays{
      tensors.steps,
      tensors.columns,
      static_cast<scalar_t>(gamma),
      static_cast<scalar_t>(gamma * gae_lambda),
      data<scalar_t>(std::as_const(tensors.grad_advantages)),
      data<scalar_t>(std::as_const(tensors.grad_returns)),
      data<uint8_t>(std::as_const(tensors.terminated)),
      data<uint8_t>(std::as_const(tensors.truncated)),
      data<scalar_t>(tensors.grad_rewards),
      data<scalar_t>(tensors.grad_values),
      has_final_values ? data<scalar_t>(tensors.grad_final_values) : nullptr};
  parallel_columns(tensors.steps, tensors.columns, [&](int64_t begin, int64_t end) {
    run_simd([&](auto) MG2L_INLINE_LAMBDA { gae_backward_columns(arrays, begin, end); });
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> gae_cpu(const Tensor& rewards, const Tensor& values,
                                           const Tensor& terminated, const Tensor& truncated,
                                           double gamma, double gae_lambda,
                                           const std::optional<Tensor>& final_values,
                                           const std::optional<Tensor>& value_mean,
                                           const std::optional<Tensor>& value_std) {
  check_gae(rewards, values, terminated, truncated, gamma, gae_lambda, final_values, value_mean,
            value_std);
  GaeTensors tensors(rewards, values, terminated, truncated, final_values, value_mean, value_std);
  if (rewards.scalar_type() == ScalarType::Float) {
    gae_kernel<float>(tensors, gamma, gae_lambda);
  } else {
    gae_kernel<double>(tensors, gamma, gae_lambda);
  }
  return {tensors.advantages, tensors.returns, tensors.moments};
}

std::tuple<Tensor, Tensor, Tensor> gae_backward_cpu(const Tensor& grad_advantages,
                                                    const Tensor& grad_returns,
                                                    const Tensor& terminated,
                                                    const Tensor& truncated, double gamma,
                                                    double gae_lambda, bool has_final_values) {
  check_gae_backward(grad_advantages, grad_returns, terminated, truncated);
  GaeBackwardTensors tensors(grad_advantages, grad_returns, terminated, truncated,
                             has_final_values);
  if (grad_advantages.scalar_type() == ScalarType::Float) {
    gae_backward_kernel<float>(tensors, gamma, gae_lambda, has_final_values);
  } else {
    gae_backward_kernel<double>(tensors, gamma, gae_lambda, has_final_values);
  }
  return {tensors.grad_rewards, tensors.grad_values, tensors.grad_final_values};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("gae", TORCH_BOX(&mg2l::gae_cpu));
  m.impl("gae_backward", TORCH_BOX(&mg2l::gae_backward_cpu));
}
