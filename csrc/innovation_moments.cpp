// CPU kernels of `innovation_moments` and `innovation_moments_backward`.
#include "innovation_moments.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "gemm.h"

namespace mg2l {
namespace {

constexpr int64_t kMinTaskPairs = 16;  // of a context and an agent; below it a thread costs more
constexpr int kKinds = kInnovationKinds;

template <typename scalar_t>
struct InnovationArrays {
  const InnovationSizes& sizes;
  const scalar_t* series;       // [rows, A, D]
  const scalar_t* transitions;  // [rows, A, F]
  const int64_t* places;        // [B, T] or null
  // Of the transition before: of one that follows it alone, and of one that follows two; of the
  // one before that.
  double alone, first, second;

  // Where an agent's transition lies, of rows times agents.
  int64_t at(int64_t context, int64_t t, int64_t agent) const {
    const int64_t i = context * sizes.steps + t;
    return (places ? places[i] : i) * sizes.agents + agent;
  }

  bool follows(int64_t now, int64_t before) const {
    const scalar_t* began = transitions + now * sizes.features;
    const scalar_t* ended = transitions + (before + 1) * sizes.features - sizes.observation;
    for (int64_t i = 0; i < sizes.observation; ++i) {
      if (!(began[i] == ended[i])) return false;
    }
    return true;
  }
};

// One thread's memory: an agent's transitions in a context, in rows of whole vectors whose padding
// is zero.
struct InnovationRows {
  // Transitions of one kind, and as many rows behind them as a micro-kernel may read.
  struct Kind {
    int64_t count = 0;
    std::vector<int64_t> times;       // [T], those of `count` transitions
    std::vector<double> innovations;  // [T, padded]
  };

  int64_t padded;
  std::vector<double> values;  // [T, padded]
  std::vector<int64_t> at;     // where each lies
  std::array<Kind, kKinds> kinds;

  explicit InnovationRows(const InnovationSizes& sizes)
      : padded(padded_width<double>(sizes.width)),
        values(static_cast<size_t>(sizes.steps * padded)),
        at(static_cast<size_t>(sizes.steps)) {
    for (Kind& kind : kinds) {
      kind.times.resize(at.size());
      kind.innovations.resize(static_cast<size_t>((sizes.steps + kRows<64>)*padded));
    }
  }

  template <int kBytes, typename scalar_t>
  MG2L_INLINE void gather(const InnovationArrays<scalar_t>& a, int64_t context, int64_t agent) {
    constexpr int kLanes = kBytes / sizeof(double);
    using V = Vec<double, kLanes>;
    const int64_t width = a.sizes.width;
    for (Kind& kind : kinds) kind.count = 0;
    int64_t followed = 0;  // transitions, two at most
    for (int64_t t = 0; t < a.sizes.steps; ++t) {
      const int64_t now = at[static_cast<size_t>(t)] = a.at(context, t, agent);
      double* to = values.data() + t * padded;
      const scalar_t* from = a.series + now * width;
      for (int64_t i = 0; i < width; ++i) to[i] = static_cast<double>(from[i]);
      const bool follows = t > 0 && a.follows(now, at[static_cast<size_t>(t - 1)]);
      followed = follows ? std::min<int64_t>(followed + 1, kKinds - 1) : 0;
      Kind& kind = kinds[static_cast<size_t>(followed)];
      kind.times[static_cast<size_t>(kind.count++)] = t;
    }
    // Apart: vectors are not read where numbers have just been written one by one.
    for (int which = 0; which < kKinds; ++which) {
      Kind& kind = kinds[static_cast<size_t>(which)];
      const V of_before = splat<V>(which == 1 ? a.alone : a.first), second = splat<V>(a.second);
      double* to = kind.innovations.data();
      for (int64_t i = 0; i < kind.count; ++i, to += padded) {
        const double* from = values.data() + kind.times[static_cast<size_t>(i)] * padded;
        for (int64_t h = 0; h < padded; h += kLanes) {
          V x = load<V>(from + h);
          if (which > 0) x -= of_before * load<V>(from - padded + h);
          if (which > 1) x -= second * load<V>(from - 2 * padded + h);
          store(to + h, x);
        }
      }
    }
  }
};

// Rows that are taken out of the memory of a context are its own: gradients of contexts are written
// at the same time.
void check_places(const InnovationSizes& sizes, const int64_t* places) {
  std::vector<int64_t> owners(static_cast<size_t>(sizes.rows), -1);
  for (int64_t context = 0; context < sizes.contexts; ++context) {
    for (int64_t t = 0; t < sizes.steps; ++t, ++places) {
      MG2L_CHECK(*places >= 0 && *places < sizes.rows,
                 "innovation_moments: places must lie in [0, U) with U = ", sizes.rows, ", got ",
                 *places);
      int64_t& owner = owners[static_cast<size_t>(*places)];
      MG2L_CHECK(owner < 0 || owner == context, "innovation_moments: contexts must have rows of ",
                 "their own, got row ", *places, " in ", owner, " and ", context);
      owner = context;
    }
  }
}

template <typename scalar_t, typename Body>
void each_pair(const InnovationArrays<scalar_t>& a, const Body& body) {
  const int64_t pairs = a.sizes.contexts * a.sizes.agents;
  torch::stable::parallel_for(0, pairs, kMinTaskPairs, [&](int64_t first, int64_t last) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA { body(bytes, first, last); });
  });
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void moments_of_pairs(const InnovationArrays<scalar_t>& a, int64_t first, int64_t last,
                                  double* moments) {
  const int64_t width = a.sizes.width;
  InnovationRows rows(a.sizes);
  const int64_t padded = rows.padded;
  // Whole blocks of rows are multiplied without a remainder.
  const int64_t multiplied = std::max<int64_t>(width, kRows<64>);
  std::vector<double> product(static_cast<size_t>(multiplied * padded));
  const double each = 1 / static_cast<double>(std::max<int64_t>(a.sizes.steps, 1));
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t context = pair / a.sizes.agents, agent = pair % a.sizes.agents;
    rows.template gather<kBytes>(a, context, agent);
    double* to = moments + (context * kKinds * a.sizes.agents + agent) * width * width;
    for (const auto& kind : rows.kinds) {
      std::fill(product.begin(), product.end(), 0);
      const double* x = kind.innovations.data();
      add_product_t<kBytes>(Rows<double>{x, padded, multiplied}, x, padded, kind.count,
                            product.data());
      for (int64_t i = 0; i < width; ++i) {
        const double* from = product.data() + i * padded;
        for (int64_t j = 0; j < width; ++j) to[i * width + j] = from[j] * each;
      }
      to += a.sizes.agents * width * width;
    }
  }
}

// `grad_series` is zero before; a pair adds to its own rows. Of the coefficients each has its own.
template <int kBytes, typename scalar_t>
MG2L_INLINE void gradients_of_pairs(const InnovationArrays<scalar_t>& a, int64_t first,
                                    int64_t last, const double* grad, double* grad_series,
                                    double* grad_coefficients) {
  constexpr int kLanes = kBytes / sizeof(double), kMicro = kRows<kBytes>;
  using V = Vec<double, kLanes>;
  const int64_t width = a.sizes.width;
  InnovationRows rows(a.sizes);
  const int64_t padded = rows.padded;
  std::vector<double> both(static_cast<size_t>(width * padded));  // G + G^T over T
  std::vector<double> slopes(static_cast<size_t>((a.sizes.steps + kMicro) * padded));
  const double each = 1 / static_cast<double>(std::max<int64_t>(a.sizes.steps, 1));
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t context = pair / a.sizes.agents, agent = pair % a.sizes.agents;
    rows.template gather<kBytes>(a, context, agent);
    V along[kKinds] = {V{}, V{}, V{}};  // what innovations change by with each coefficient
    for (int which = 0; which < kKinds; ++which) {
      const auto& kind = rows.kinds[static_cast<size_t>(which)];
      const double* from =
          grad + ((context * kKinds + which) * a.sizes.agents + agent) * width * width;
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          both[static_cast<size_t>(i * padded + j)] =
              (from[i * width + j] + from[j * width + i]) * each;
        }
      }
      const Rows<double> left{kind.innovations.data(), padded, width};
      for (int64_t row = 0; row < kind.count; row += kMicro) {
        for (int64_t h = 0; h < padded; h += kPair * kLanes) {
          V sum[kMicro][kPair];
          const V zero[kPair] = {V{}, V{}};
          multiply<kBytes>(left, both.data(), padded, row, h, zero, sum);
          for (int i = 0; i < kMicro; ++i) {
            store(slopes.data() + (row + i) * padded + h, sum[i][0]);
            store(slopes.data() + (row + i) * padded + h + kLanes, sum[i][1]);
          }
        }
      }
      for (int64_t row = 0; row < kind.count; ++row) {
        const int64_t t = kind.times[static_cast<size_t>(row)];
        const double* slope = slopes.data() + row * padded;
        double* to = grad_series + rows.at[static_cast<size_t>(t)] * width;
        for (int64_t i = 0; i < width; ++i) to[i] += slope[i];
        for (int lag = 1; lag <= which; ++lag) {
          const int coefficient = which == 1 ? 0 : lag;
          const double value = which == 1 ? a.alone : lag == 1 ? a.first : a.second;
          const double* before = rows.values.data() + (t - lag) * padded;
          for (int64_t h = 0; h < padded; h += kLanes) {
            along[coefficient] += load<V>(slope + h) * load<V>(before + h);
          }
          to = grad_series + rows.at[static_cast<size_t>(t - lag)] * width;
          for (int64_t i = 0; i < width; ++i) to[i] -= value * slope[i];
        }
      }
    }
    for (int i = 0; i < kKinds; ++i) {
      grad_coefficients[pair * kKinds + i] = -sum_lanes<double, kLanes>(along[i]);
    }
  }
}

template <typename scalar_t>
InnovationArrays<scalar_t> arrays_of(const InnovationSizes& sizes,
                                     const InnovationTensors& tensors) {
  const int64_t* places = data_or_null<int64_t>(tensors.places);
  if (places) check_places(sizes, places);
  const scalar_t* coefficients = data<scalar_t>(tensors.coefficients);
  return {sizes,
          data<scalar_t>(tensors.series),
          data<scalar_t>(tensors.transitions),
          places,
          static_cast<double>(coefficients[0]),
          static_cast<double>(coefficients[1]),
          static_cast<double>(coefficients[2])};
}

}  // namespace

Tensor innovation_moments_cpu(const Tensor& series, const Tensor& transitions,
                              const Tensor& coefficients, int64_t observation,
                              const std::optional<Tensor>& places) {
  const InnovationSizes sizes =
      check_innovation_moments(series, transitions, coefficients, observation, places);
  const InnovationTensors tensors(series, transitions, coefficients, places);
  Tensor moments = allocate(
      series, {sizes.contexts, kKinds, sizes.agents, sizes.width, sizes.width}, ScalarType::Double);
  for_floating(series.scalar_type(), [&](auto zero) {
    const auto arrays = arrays_of<decltype(zero)>(sizes, tensors);
    each_pair(arrays, [&](auto bytes, int64_t first, int64_t last) MG2L_INLINE_LAMBDA {
      moments_of_pairs<bytes>(arrays, first, last, data<double>(moments));
    });
  });
  return moments;
}

std::tuple<Tensor, Tensor> innovation_moments_backward_cpu(
    const Tensor& grad_, const Tensor& series, const Tensor& transitions,
    const Tensor& coefficients, int64_t observation, const std::optional<Tensor>& places) {
  const InnovationSizes sizes = check_innovation_moments_backward(
      grad_, series, transitions, coefficients, observation, places);
  const InnovationTensors tensors(series, transitions, coefficients, places);
  const Tensor grad = as_contiguous(grad_);
  Tensor grad_series = allocate(series, sizes_of(series), ScalarType::Double);
  Tensor grad_coefficients =
      allocate(series, {sizes.contexts, sizes.agents, kKinds}, ScalarType::Double);
  std::fill_n(data<double>(grad_series), grad_series.numel(), 0.0);
  for_floating(series.scalar_type(), [&](auto zero) {
    const auto arrays = arrays_of<decltype(zero)>(sizes, tensors);
    each_pair(arrays, [&](auto bytes, int64_t first, int64_t last) MG2L_INLINE_LAMBDA {
      gradients_of_pairs<bytes>(arrays, first, last, data<double>(grad), data<double>(grad_series),
                                data<double>(grad_coefficients));
    });
  });
  return {grad_series, grad_coefficients};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("innovation_moments", TORCH_BOX(&mg2l::innovation_moments_cpu));
  m.impl("innovation_moments_backward", TORCH_BOX(&mg2l::innovation_moments_backward_cpu));
}
