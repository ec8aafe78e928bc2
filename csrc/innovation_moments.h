// What the CPU and the CUDA implementation of `innovation_moments` share: checking the arguments
// and laying them out. See mg2l/ops/innovation_moments.py for what it computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

// Transitions that follow none, that follow one, and that follow two.
constexpr int64_t kInnovationKinds = 3;

struct InnovationSizes {
  int64_t contexts, steps, agents, width, features, observation;
  int64_t rows;  // of series and transitions
};

inline InnovationSizes check_innovation_moments(const Tensor& series, const Tensor& transitions,
                                                const Tensor& coefficients, int64_t observation,
                                                const std::optional<Tensor>& places) {
  constexpr const char* op = "innovation_moments";
  check_floating(op, "series", series);
  const bool in_order = !places;
  const char* shape = in_order ? "[B, T, A, D]" : "[U, A, D]";
  const int64_t axes = in_order ? 4 : 3;
  MG2L_CHECK(series.dim() == axes, op, ": series must have shape ", shape, ", got ",
             to_text(sizes_of(series)));
  if (places) {
    check_dtype(op, "places", *places, ScalarType::Long);
    check_same_device(op, "places", *places, "series", series);
    MG2L_CHECK(places->dim() == 2, op, ": places must have shape [B, T], got ",
               to_text(sizes_of(*places)));
  }
  MG2L_CHECK(series.size(axes - 1) > 0, op, ": series must have shape ", shape,
             " with D >= 1, got ", to_text(sizes_of(series)));
  MG2L_CHECK(transitions.dim() == axes, op, ": transitions must have shape ",
             in_order ? "[B, T, A, F]" : "[U, A, F]", ", got ", to_text(sizes_of(transitions)));
  Sizes sizes = sizes_of(series);
  sizes.back() = transitions.size(axes - 1);
  check_like(op, "transitions", transitions, "series", series, sizes,
             in_order ? "[B, T, A, F]" : "[U, A, F]");
  check_like(op, "coefficients", coefficients, "series", series, {3}, "[3]");
  MG2L_CHECK(observation > 0 && observation <= sizes.back(), op, ": observation must be in [1, F] ",
             "with F = ", sizes.back(), ", got ", observation);
  const int64_t contexts = in_order ? series.size(0) : places->size(0);
  const int64_t steps = in_order ? series.size(1) : places->size(1);
  return {contexts,
          steps,
          series.size(axes - 2),
          series.size(axes - 1),
          sizes.back(),
          observation,
          in_order ? contexts * steps : series.size(0)};
}

inline InnovationSizes check_innovation_moments_backward(const Tensor& grad, const Tensor& series,
                                                         const Tensor& transitions,
                                                         const Tensor& coefficients,
                                                         int64_t observation,
                                                         const std::optional<Tensor>& places) {
  const InnovationSizes sizes =
      check_innovation_moments(series, transitions, coefficients, observation, places);
  check_like("innovation_moments_backward", "grad", grad, "series", series,
             {sizes.contexts, kInnovationKinds, sizes.agents, sizes.width, sizes.width},
             "[B, 3, A, D, D]", ScalarType::Double);
  return sizes;
}

// Contiguous arguments.
struct InnovationTensors {
  Tensor series, transitions, coefficients;
  std::optional<Tensor> places;

  InnovationTensors(const Tensor& series_, const Tensor& transitions_, const Tensor& coefficients_,
                    const std::optional<Tensor>& places_)
      : series(as_contiguous(series_)),
        transitions(as_contiguous(transitions_)),
        coefficients(as_contiguous(coefficients_)) {
    if (places_) places = as_contiguous(*places_);
  }
};

}  // namespace mg2l
