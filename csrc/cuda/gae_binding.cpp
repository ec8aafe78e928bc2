// Binds the CUDA kernels of `gae` and `gae_backward` to torch; compiled by the host compiler.
#include <tuple>
#include <utility>

#include "../gae.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {

std::tuple<Tensor, Tensor, Tensor> gae_cuda(const Tensor& rewards, const Tensor& values,
                                            const Tensor& terminated, const Tensor& truncated,
                                            double gamma, double gae_lambda,
                                            const std::optional<Tensor>& final_values,
                                            const std::optional<Tensor>& value_mean,
                                            const std::optional<Tensor>& value_std) {
  check_gae(rewards, values, terminated, truncated, gamma, gae_lambda, final_values, value_mean,
            value_std);
  const auto device = rewards.get_device_index();
  const DeviceGuard guard(device);
  GaeTensors tensors(rewards, values, terminated, truncated, final_values, value_mean, value_std);
  tensors.advantages = allocate_like(tensors.rewards);
  tensors.returns = allocate_like(tensors.rewards);
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    GaeArgs<scalar_t> args{};
    args.steps = tensors.steps;
    args.columns = tensors.columns;
    args.gamma = static_cast<scalar_t>(gamma);
    args.decay = static_cast<scalar_t>(gamma * gae_lambda);
    args.rewards = data<scalar_t>(std::as_const(tensors.rewards));
    args.values = data<scalar_t>(std::as_const(tensors.values));
    args.terminated = data<uint8_t>(std::as_const(tensors.terminated));
    args.truncated = data<uint8_t>(std::as_const(tensors.truncated));
    args.final_values = data_or_null<scalar_t>(tensors.final_values);
    args.value_mean = data_or_null<scalar_t>(tensors.value_mean);
    args.value_std = data_or_null<scalar_t>(tensors.value_std);
    args.advantages = data<scalar_t>(tensors.advantages);
    args.returns = data<scalar_t>(tensors.returns);
    args.moments = data<double>(tensors.moments);
    check_launch("gae", launcher(&args, current_stream(device)));
  };
  for_launcher(rewards.scalar_type(), mg2l_gae_float, mg2l_gae_double, launch);
  return {tensors.advantages, tensors.returns, tensors.moments};
}

std::tuple<Tensor, Tensor, Tensor> gae_backward_cuda(const Tensor& grad_advantages,
                                                     const Tensor& grad_returns,
                                                     const Tensor& terminated,
                                                     const Tensor& truncated, double gamma,
                                                     double gae_lambda, bool has_final_values) {
  check_gae_backward(grad_advantages, grad_returns, terminated, truncated);
  const auto device = grad_advantages.get_device_index();
  const DeviceGuard guard(device);
  GaeBackwardTensors tensors(grad_advantages, grad_returns, terminated, truncated,
                             has_final_values);
  if (tensors.steps == 0) {
    torch::stable::zero_(tensors.grad_values);
    return {tensors.grad_rewards, tensors.grad_values, tensors.grad_final_values};
  }
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    GaeBackwardArgs<scalar_t> args{};
    args.steps = tensors.steps;
    args.columns = tensors.columns;
    args.gamma = static_cast<scalar_t>(gamma);
    args.decay = static_cast<scalar_t>(gamma * gae_lambda);
    args.grad_advantages = data<scalar_t>(std::as_const(tensors.grad_advantages));
    args.grad_returns = data<scalar_t>(std::as_const(tensors.grad_returns));
    args.terminated = data<uint8_t>(std::as_const(tensors.terminated));
    args.truncated = data<uint8_t>(std::as_const(tensors.truncated));
    args.grad_rewards = data<scalar_t>(tensors.grad_rewards);
    args.grad_values = data<scalar_t>(tensors.grad_values);
    if (has_final_values) args.grad_final_values = data<scalar_t>(tensors.grad_final_values);
    check_launch("gae_backward", launcher(&args, current_stream(device)));
  };
  for_launcher(grad_advantages.scalar_type(), mg2l_gae_backward_float, mg2l_gae_backward_double,
               launch);
  return {tensors.grad_rewards, tensors.grad_values, tensors.grad_final_values};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("gae", TORCH_BOX(&mg2l::gae_cuda));
  m.impl("gae_backward", TORCH_BOX(&mg2l::gae_backward_cuda));
}

// Compute capabilities this library was compiled for, e.g. "80 90".
extern "C" __attribute__((visibility("default"))) const char* mg2l_cuda_archs() {
  return MG2L_CUDA_ARCHS;
}
