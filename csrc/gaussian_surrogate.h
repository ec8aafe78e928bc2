// What the CPU and the CUDA implementation of `gaussian_surrogate` share: checking the arguments
// and laying them out. See mg2l/ops/gaussian_surrogate.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

constexpr double kLogSqrtTwoPi = 0.91893853320467274178;

inline void check_gaussian_surrogate(const Tensor& mean, const Tensor& log_std,
                                     const Tensor& action, const Tensor& before,
                                     const Tensor& advantages, const std::optional<Tensor>& weights,
                                     double clip, double entropy_coef,
                                     const std::optional<Tensor>& own) {
  constexpr const char* op = "gaussian_surrogate";
  check_floating(op, "mean", mean);
  MG2L_CHECK(mean.dim() == 3, op, ": mean must have shape [A, rows, W], got ",
             to_text(sizes_of(mean)));
  const Sizes rows{mean.size(0), mean.size(1)};
  const bool shared = log_std.dim() == 3 && log_std.size(0) == 1;
  check_like(op, "log_std", log_std, "mean", mean, {shared ? 1 : mean.size(0), 1, mean.size(2)},
             "[A or 1, 1, W]");
  check_like(op, "action", action, "mean", mean, sizes_of(mean), "[A, rows, W]");
  check_like(op, "before", before, "mean", mean, rows, "[A, rows]");
  check_like(op, "advantages", advantages, "mean", mean, rows, "[A, rows]");
  if (weights) check_like(op, "weights", *weights, "mean", mean, rows, "[A, rows]");
  MG2L_CHECK(clip > 0, op, ": clip must be positive, got ", clip);
  MG2L_CHECK(entropy_coef >= 0, op, ": entropy_coef must be at least 0, got ", entropy_coef);
  if (own) {
    check_like(op, "own", *own, "mean", mean, {mean.size(0), 1, mean.size(2)}, "[A, 1, W]",
               ScalarType::Bool);
  }
}

// Contiguous arguments, and the results.
struct GaussianTensors {
  int64_t agents, rows, width;
  bool shared;  // one standard deviation for all agents
  Tensor mean, log_std, action, before, advantages;
  std::optional<Tensor> weights, own;
  Tensor loss, surrogate, entropy, kl, clip_fraction, mean_slope, log_std_slope;

  GaussianTensors(const Tensor& mean_, const Tensor& log_std_, const Tensor& action_,
                  const Tensor& before_, const Tensor& advantages_,
                  const std::optional<Tensor>& weights_, const std::optional<Tensor>& own_)
      : agents(mean_.size(0)),
        rows(mean_.size(1)),
        width(mean_.size(2)),
        shared(log_std_.size(0) == 1),
        mean(as_contiguous(mean_)),
        log_std(as_contiguous(log_std_)),
        action(as_contiguous(action_)),
        before(as_contiguous(before_)),
        advantages(as_contiguous(advantages_)),
        loss(allocate(mean, {agents})),
        surrogate(allocate(mean, {agents})),
        entropy(allocate(mean, {agents})),
        kl(allocate(mean, {agents})),
        clip_fraction(allocate(mean, {agents})),
        mean_slope(allocate_like(mean)),
        log_std_slope(allocate(mean, {agents, 1, width})) {
    if (weights_) weights = as_contiguous(*weights_);
    if (own_) own = as_contiguous(*own_);
  }
};

}  // namespace mg2l
