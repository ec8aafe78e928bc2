// What the CPU and the CUDA implementation of `surrogate` and `value_loss` share: checking the
// arguments and laying them out. See mg2l/ops/clipped.py for what the operators compute.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

// Checks [A, rows] tensors that belong together, and the weights of their rows.
inline void check_clipped(const char* op, const char* first_name, const Tensor& first,
                          const char* second_name, const Tensor& second, const char* third_name,
                          const Tensor& third, const std::optional<Tensor>& weights) {
  check_floating(op, first_name, first);
  MG2L_CHECK(first.dim() == 2, op, ": ", first_name, " must have shape [A, rows], got ",
             to_text(sizes_of(first)));
  const Sizes sizes = sizes_of(first);
  check_like(op, second_name, second, first_name, first, sizes, "[A, rows]");
  check_like(op, third_name, third, first_name, first, sizes, "[A, rows]");
  if (weights) check_like(op, "weights", *weights, first_name, first, sizes, "[A, rows]");
}

inline void check_surrogate(const Tensor& log_probs, const Tensor& before, const Tensor& advantages,
                            const std::optional<Tensor>& weights, double clip) {
  constexpr const char* op = "surrogate";
  check_clipped(op, "log_probs", log_probs, "before", before, "advantages", advantages, weights);
  MG2L_CHECK(clip > 0, op, ": clip must be positive, got ", clip);
}

inline void check_value_loss(const Tensor& prediction, const Tensor& old, const Tensor& target,
                             const std::optional<Tensor>& weights, std::optional<double> clip,
                             std::optional<double> delta) {
  constexpr const char* op = "value_loss";
  check_clipped(op, "prediction", prediction, "old", old, "target", target, weights);
  MG2L_CHECK(!clip || *clip > 0, op, ": clip must be positive, got ", *clip);
  MG2L_CHECK(!delta || *delta > 0, op, ": delta must be positive, got ", *delta);
}

// Arguments of either, contiguous, and the results that both have.
struct ClippedTensors {
  int64_t agents, rows;
  Tensor first, second, third;
  std::optional<Tensor> weights;
  Tensor loss, slope;

  ClippedTensors(const Tensor& first_, const Tensor& second_, const Tensor& third_,
                 const std::optional<Tensor>& weights_)
      : agents(first_.size(0)),
        rows(first_.size(1)),
        first(as_contiguous(first_)),
        second(as_contiguous(second_)),
        third(as_contiguous(third_)),
        loss(allocate(first, {agents})),
        slope(allocate(first, {agents, rows})) {
    if (weights_) weights = as_contiguous(*weights_);
  }
};

}  // namespace mg2l
