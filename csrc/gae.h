// What the CPU and the CUDA implementation of `gae` share: checking the arguments and laying them
// out. See mg2l/ops/gae.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

inline void check_gae(const Tensor& rewards, const Tensor& values, const Tensor& terminated,
                      const Tensor& truncated, double gamma, double gae_lambda,
                      const std::optional<Tensor>& final_values,
                      const std::optional<Tensor>& value_mean,
                      const std::optional<Tensor>& value_std) {
  constexpr const char* op = "gae";
  MG2L_CHECK(rewards.dim() >= 1, op, ": rewards must have shape [T, *B], got a scalar");
  check_floating(op, "rewards", rewards);
  const Sizes sizes = sizes_of(rewards);
  Sizes value_sizes = sizes;
  ++value_sizes[0];
  const Sizes batch(sizes.begin() + 1, sizes.end());
  const auto like_rewards = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
    check_dtype(op, name, tensor, dtype);
    check_same_device(op, name, tensor, "rewards", rewards);
  };

  like_rewards("values", values, rewards.scalar_type());
  check_sizes(op, "values", values, value_sizes, "[T + 1, *B]");
  like_rewards("terminated", terminated, ScalarType::Bool);
  check_sizes(op, "terminated", terminated, sizes, "[T, *B]");
  like_rewards("truncated", truncated, ScalarType::Bool);
  check_sizes(op, "truncated", truncated, sizes, "[T, *B]");
  if (final_values) {
    like_rewards("final_values", *final_values, rewards.scalar_type());
    check_sizes(op, "final_values", *final_values, sizes, "[T, *B]");
  }
  MG2L_CHECK(value_mean.has_value() == value_std.has_value(), op,
             ": value_mean and value_std must be given together, got only ",
             value_mean ? "value_mean" : "value_std");
  if (value_mean) {
    like_rewards("value_mean", *value_mean, rewards.scalar_type());
    check_broadcasts(op, "value_mean", *value_mean, batch, "[*B]");
    like_rewards("value_std", *value_std, rewards.scalar_type());
    check_broadcasts(op, "value_std", *value_std, batch, "[*B]");
  }
  check_unit_interval(op, "gamma", gamma);
  check_unit_interval(op, "gae_lambda", gae_lambda);
}

inline void check_gae_backward(const Tensor& grad_advantages, const Tensor& grad_returns,
                               const Tensor& terminated, const Tensor& truncated) {
  constexpr const char* op = "gae_backward";
  MG2L_CHECK(grad_advantages.dim() >= 1, op, ": grad_advantages must have shape [T, *B]");
  check_floating(op, "grad_advantages", grad_advantages);
  const Sizes sizes = sizes_of(grad_advantages);
  const auto check = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
    check_dtype(op, name, tensor, dtype);
    check_same_device(op, name, tensor, "grad_advantages", grad_advantages);
    check_sizes(op, name, tensor, sizes, "[T, *B]");
  };
  check("grad_returns", grad_returns, grad_advantages.scalar_type());
  check("terminated", terminated, ScalarType::Bool);
  check("truncated", truncated, ScalarType::Bool);
}

// Arguments of `gae`, contiguous, and its results; where in memory advantages and returns lie is
// for each device to say. `columns` is the product of *B.
struct GaeTensors {
  int64_t steps, columns;
  Tensor rewards, values, terminated, truncated;
  std::optional<Tensor> final_values, value_mean, value_std;
  Tensor advantages, returns, moments;

  GaeTensors(const Tensor& rewards_, const Tensor& values_, const Tensor& terminated_,
             const Tensor& truncated_, const std::optional<Tensor>& final_values_,
             const std::optional<Tensor>& value_mean_, const std::optional<Tensor>& value_std_)
      : rewards(as_contiguous(rewards_)),
        values(as_contiguous(values_)),
        terminated(as_contiguous(terminated_)),
        truncated(as_contiguous(truncated_)) {
    Sizes batch = sizes_of(rewards);
    steps = batch[0];
    batch.erase(batch.begin());
    columns = 1;
    for (const int64_t size : batch) columns *= size;
    if (final_values_) final_values = as_contiguous(*final_values_);
    if (value_mean_) value_mean = expand_contiguous(*value_mean_, batch);
    if (value_std_) value_std = expand_contiguous(*value_std_, batch);
    batch.insert(batch.begin(), 2);
    moments = allocate(rewards, batch, ScalarType::Double);
  }
};

// The same for `gae_backward`.
struct GaeBackwardTensors {
  int64_t steps, columns;
  Tensor grad_advantages, grad_returns, terminated, truncated;
  Tensor grad_rewards, grad_values, grad_final_values;

  GaeBackwardTensors(const Tensor& grad_advantages_, const Tensor& grad_returns_,
                     const Tensor& terminated_, const Tensor& truncated_, bool has_final_values)
      : grad_advantages(as_contiguous(grad_advantages_)),
        grad_returns(as_contiguous(grad_returns_)),
        terminated(as_contiguous(terminated_)),
        truncated(as_contiguous(truncated_)),
        grad_rewards(allocate_like(grad_advantages)) {
    Sizes sizes = sizes_of(grad_advantages);
    steps = sizes[0];
    columns = 1;
    for (size_t axis = 1; axis < sizes.size(); ++axis) columns *= sizes[axis];
    sizes[0] = has_final_values ? steps : 0;
    grad_final_values = allocate(grad_advantages, sizes);
    sizes[0] = steps + 1;
    grad_values = allocate(grad_advantages, sizes);
  }
};

}  // namespace mg2l
