// CPU kernels of `gae` and `gae_backward`.
#include "gae.h"

#include <algorithm>
#include <tuple>

#include "vec.h"

namespace mg2l {
namespace {

constexpr int kVectors = 4;              // vectors of columns walked together, state in registers
constexpr int64_t kPartialSteps = 32;    // steps whose moments are summed in scalar_t
constexpr int64_t kBlock = 64;           // columns are split between threads in multiples of this
constexpr int64_t kTile = 4096;          // columns that the adjoint walks together
constexpr int64_t kMinTaskWork = 16384;  // elements per task; below it a thread costs more
// Results of so many bytes are not in the caches any more when they are read: they are written past
// them, without being read first.
constexpr int64_t kStreamBytes = int64_t{1} << 25;

template <typename scalar_t>
struct GaeArrays {
  int64_t steps, columns;
  scalar_t gamma, decay;  // decay = gamma * lambda
  const scalar_t *rewards, *values;
  const uint8_t *terminated, *truncated;
  const scalar_t *final_values, *value_mean, *value_std;  // null when not given
  scalar_t *advantages, *returns;
  double* moments;
  bool streams;  // whether results are written past the caches
};

template <typename scalar_t>
MG2L_INLINE bool any_truncated(const GaeArrays<scalar_t>& a, int64_t at, int64_t width) {
  uint8_t any = 0;
  for (int64_t n = 0; n < width; ++n) any |= a.truncated[at + n];
  return any;
}

// De-normalised values of one vector of columns that begins at `column` and lies at `values`.
template <int kLanes, bool kScaled, typename scalar_t>
MG2L_INLINE Vec<scalar_t, kLanes> load_value(const GaeArrays<scalar_t>& a, const scalar_t* values,
                                             int64_t column) {
  using V = Vec<scalar_t, kLanes>;
  const V value = load<V>(values);
  if constexpr (!kScaled) return value;
  return V(value * load<V>(a.value_std + column) + load<V>(a.value_mean + column));
}

// One step of a strip: `carry` becomes its advantages, `next_value` its values.
template <bool kScaled, bool kFinal, int kLanes, int kVecs, typename scalar_t>
MG2L_INLINE void walk_step(const GaeArrays<scalar_t>& a, int64_t first, int64_t step,
                           const Vec<scalar_t, kLanes>& gamma, const Vec<scalar_t, kLanes>& decay,
                           Vec<scalar_t, kLanes> (&carry)[kVecs],
                           Vec<scalar_t, kLanes> (&next_value)[kVecs]) {
  using V = Vec<scalar_t, kLanes>;
  using Bits = VecBits<scalar_t, kLanes>;
  const int64_t at = step * a.columns + first;
  const scalar_t *rewards = pinned(a.rewards + at), *values = pinned(a.values + at);
  const uint8_t* terminations = pinned(a.terminated + at);
  const uint8_t* truncations = pinned(a.truncated + at);
#pragma GCC unroll 8
  for (int i = 0; i < kVecs; ++i) {
    const int n = i * kLanes;
    const Bits terminated = widen<Bits>(terminations + n);
    const Bits truncated = widen<Bits>(truncations + n);
    const V value = load_value<kLanes, kScaled>(a, values + n, first + n);
    V next = next_value[i];
    if constexpr (kFinal) {
      const V last = load_value<kLanes, kScaled>(a, a.final_values + at + n, first + n);
      next = truncated != 0 ? last : next;
    }
    V error = load<V>(rewards + n) - value;
    error = terminated == 0 ? V(error + gamma * next) : error;
    carry[i] = (terminated | truncated) == 0 ? V(error + decay * carry[i]) : error;
    next_value[i] = value;
  }
}

// Writes what walk_step made and adds up its moments about the pivot.
template <int kLanes, int kVecs, typename scalar_t>
MG2L_INLINE void write_step(const GaeArrays<scalar_t>& a, int64_t at,
                            const Vec<scalar_t, kLanes> (&advantage)[kVecs],
                            const Vec<scalar_t, kLanes> (&value)[kVecs],
                            const Vec<scalar_t, kLanes> (&pivot)[kVecs],
                            Vec<scalar_t, kLanes> (&sum)[kVecs],
                            Vec<scalar_t, kLanes> (&square_sum)[kVecs]) {
  using V = Vec<scalar_t, kLanes>;
  scalar_t *advantages = pinned(a.advantages + at), *returns = pinned(a.returns + at);
  if (kLanes > 1 && a.streams) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) stream(advantages + i * kLanes, advantage[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) stream(returns + i * kLanes, V(advantage[i] + value[i]));
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) store(advantages + i * kLanes, advantage[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) store(returns + i * kLanes, V(advantage[i] + value[i]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVecs; ++i) {
    const V deviation = advantage[i] - pivot[i];
    sum[i] += deviation;
    square_sum[i] += deviation * deviation;
  }
}

// Mean and sum of squared deviations of the steps so far, for the columns of a strip. Steps are
// merged a block at a time (Chan et al., 1983), their sums taken about a pivot, the mean before
// them: nothing cancels, however large the mean. The first block's pivot is its first advantage.
template <int kWidth>
struct Moments {
  double count = 0;
  double mean[kWidth] = {}, squares[kWidth] = {};

  template <int kLanes, int kVecs, typename scalar_t>
  MG2L_INLINE void merge(double steps, Vec<scalar_t, kLanes> (&pivot)[kVecs],
                         Vec<scalar_t, kLanes> (&sum)[kVecs],
                         Vec<scalar_t, kLanes> (&square_sum)[kVecs]) {
    scalar_t pivots[kWidth], sums[kWidth], square_sums[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      store(pivots + i * kLanes, pivot[i]);
      store(sums + i * kLanes, sum[i]);
      store(square_sums + i * kLanes, square_sum[i]);
    }
    const double total = count + steps, weight = steps / total, between = count * weight;
    const double inverse = 1 / steps;
    for (int n = 0; n < kWidth; ++n) {
      const double shift = static_cast<double>(sums[n]) * inverse;
      const double within = static_cast<double>(square_sums[n]) - shift * shift * steps;
      const double delta = static_cast<double>(pivots[n]) + shift - mean[n];
      mean[n] += delta * weight;
      squares[n] += (within < 0 ? 0 : within) + delta * delta * between;
      pivots[n] = static_cast<scalar_t>(mean[n]);
    }
    count = total;
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      pivot[i] = load<Vec<scalar_t, kLanes>>(pivots + i * kLanes);
      sum[i] = square_sum[i] = Vec<scalar_t, kLanes>{};
    }
  }
};

// A strip of kVecs vectors of kLanes neighbouring columns, walked back through all steps: each
// input is read once and each output written once, one after the other, and the state of the
// columns stays in registers.
template <typename scalar_t, int kLanes, int kVecs, bool kScaled>
MG2L_INLINE void gae_strip(const GaeArrays<scalar_t>& a, int64_t first) {
  constexpr int kWidth = kLanes * kVecs;
  using V = Vec<scalar_t, kLanes>;
  const V gamma = splat<V>(a.gamma), decay = splat<V>(a.decay);
  V carry[kVecs] = {}, next_value[kVecs];
  Moments<kWidth> moments;
  V pivot[kVecs] = {}, sum[kVecs] = {}, square_sum[kVecs] = {};  // of steps not in moments yet
  int64_t last = a.steps;                                        // these begin below it
#pragma GCC unroll 8
  for (int i = 0; i < kVecs; ++i) {
    next_value[i] = load_value<kLanes, kScaled>(
        a, a.values + a.steps * a.columns + first + i * kLanes, first + i * kLanes);
  }
  for (int64_t step = a.steps - 1; step >= 0; --step) {
    const int64_t at = step * a.columns + first;
    // Truncations are rare: only steps that have one pay for reading final_values.
    if (a.final_values != nullptr && any_truncated(a, at, kWidth)) {
      walk_step<kScaled, true, kLanes>(a, first, step, gamma, decay, carry, next_value);
    } else {
      walk_step<kScaled, false, kLanes>(a, first, step, gamma, decay, carry, next_value);
    }
    if (step == a.steps - 1) std::copy(carry, carry + kVecs, pivot);
    write_step<kLanes, kVecs>(a, at, carry, next_value, pivot, sum, square_sum);
    if (step % kPartialSteps == 0) {
      moments.template merge<kLanes, kVecs, scalar_t>(static_cast<double>(last - step), pivot, sum,
                                                      square_sum);
      last = step;
    }
  }
  for (int n = 0; n < kWidth; ++n) {
    // x - x is 0, or NaN where an advantage was not finite.
    const double finite = moments.squares[n] - moments.squares[n];
    a.moments[first + n] = moments.mean[n] + finite;
    a.moments[a.columns + first + n] = moments.squares[n] + finite;
  }
}

template <int kLanes, int kVecs, bool kScaled, typename scalar_t>
MG2L_INLINE int64_t gae_strips(const GaeArrays<scalar_t>& a, int64_t first, int64_t end) {
  for (; first + kLanes * kVecs <= end; first += kLanes * kVecs) {
    gae_strip<scalar_t, kLanes, kVecs, kScaled>(a, first);
  }
  return first;
}

// Walks the columns [begin, end). Where a column falls among the lanes of a vector does not depend
// on how the columns are split between threads (kBlock), and so neither do the results.
template <int kBytes, bool kScaled, typename scalar_t>
MG2L_INLINE void gae_columns(const GaeArrays<scalar_t>& arrays, int64_t begin, int64_t end) {
  const GaeArrays<scalar_t> a = arrays;  // a copy that no store can alias
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(scalar_t));
  static_assert(kBlock % (kLanes * kVectors) == 0);
  begin = gae_strips<kLanes, kVectors, kScaled>(a, begin, end);
  begin = gae_strips<kLanes, 1, kScaled>(a, begin, end);
  gae_strips<1, 1, kScaled>(a, begin, end);
  if (a.streams) end_streams();
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

// Where in a page the results begin: in the middle of the larger gap between rewards and values.
// Rows are often a multiple of a page long, and a load that has the low address bits of a store
// before it waits for that store; their lines would also drive each other out of the cache.
int64_t place_of_results(const Tensor& rewards, const Tensor& values) {
  const auto place = [](const Tensor& tensor) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kPage);
  };
  const int64_t start = place(rewards);
  const int64_t gap = (place(values) - start + kPage) % kPage;
  const int64_t middle = gap > kPage / 2 ? gap / 2 : (gap + kPage) / 2;
  return (start + middle) % kPage / kAlignment * kAlignment;
}

template <typename scalar_t>
void gae_kernel(GaeTensors& tensors, double gamma, double gae_lambda) {
  const int64_t row = tensors.columns * static_cast<int64_t>(sizeof(scalar_t));
  const bool streams = row % kAlignment == 0 && 2 * tensors.steps * row >= kStreamBytes;
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
                                   data<double>(tensors.moments),
                                   streams};
  parallel_columns(tensors.steps, tensors.columns, [&](int64_t begin, int64_t end) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      if (arrays.value_mean != nullptr) {
        gae_columns<bytes, true>(arrays, begin, end);
      } else {
        gae_columns<bytes, false>(arrays, begin, end);
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
  const int64_t place = place_of_results(tensors.rewards, tensors.values);
  auto results = two_in_page(tensors.rewards, place);
  tensors.advantages = results[0];
  tensors.returns = results[1];
  for_floating(rewards.scalar_type(),
               [&](auto zero) { gae_kernel<decltype(zero)>(tensors, gamma, gae_lambda); });
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
  for_floating(grad_advantages.scalar_type(), [&](auto zero) {
    gae_backward_kernel<decltype(zero)>(tensors, gamma, gae_lambda, has_final_values);
  });
  return {tensors.grad_rewards, tensors.grad_values, tensors.grad_final_values};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("gae", TORCH_BOX(&mg2l::gae_cpu));
  m.impl("gae_backward", TORCH_BOX(&mg2l::gae_backward_cpu));
}
