// Binds the CUDA kernel of `gaussian_surrogate` to torch; compiled by the host compiler.
#include <tuple>
#include <utility>

#include "../gaussian_surrogate.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_surrogate_cuda(
    const Tensor& mean, const Tensor& log_std, const Tensor& action, const Tensor& before,
    const Tensor& advantages, const std::optional<Tensor>& weights, double weight, double clip,
    double entropy_coef, const std::optional<Tensor>& own) {
  check_gaussian_surrogate(mean, log_std, action, before, advantages, weights, clip, entropy_coef,
                           own);
  const DeviceGuard guard(mean.get_device_index());
  GaussianTensors tensors(mean, log_std, action, before, advantages, weights, own);
  Tensor slope = allocate(tensors.before, {tensors.agents, tensors.rows});
  for_launcher(mean.scalar_type(), mg2l_gaussian_surrogate_float, mg2l_gaussian_surrogate_double,
               [&](auto launcher, auto zero) {
                 using scalar_t = decltype(zero);
                 GaussianArgs<scalar_t> args{};
                 args.agents = tensors.agents;
                 args.rows = tensors.rows;
                 args.width = tensors.width;
                 args.shared = tensors.shared;
                 args.weight = static_cast<scalar_t>(weight);
                 args.clip = static_cast<scalar_t>(clip);
                 args.entropy_coef = static_cast<scalar_t>(entropy_coef);
                 args.mean = data<scalar_t>(std::as_const(tensors.mean));
                 args.log_std = data<scalar_t>(std::as_const(tensors.log_std));
                 args.action = data<scalar_t>(std::as_const(tensors.action));
                 args.before = data<scalar_t>(std::as_const(tensors.before));
                 args.advantages = data<scalar_t>(std::as_const(tensors.advantages));
                 args.weights = data_or_null<scalar_t>(tensors.weights);
                 args.own = data_or_null<uint8_t>(tensors.own);
                 args.slope = data<scalar_t>(slope);
                 args.mean_slope = data<scalar_t>(tensors.mean_slope);
                 args.log_std_slope = data<scalar_t>(tensors.log_std_slope);
                 args.loss = data<scalar_t>(tensors.loss);
                 args.surrogate = data<scalar_t>(tensors.surrogate);
                 args.entropy = data<scalar_t>(tensors.entropy);
                 args.kl = data<scalar_t>(tensors.kl);
                 args.clip_fraction = data<scalar_t>(tensors.clip_fraction);
                 check_launch("gaussian_surrogate",
                              launcher(&args, current_stream(mean.get_device_index())));
               });
  return {tensors.loss,          tensors.surrogate,  tensors.entropy,      tensors.kl,
          tensors.clip_fraction, tensors.mean_slope, tensors.log_std_slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("gaussian_surrogate", TORCH_BOX(&mg2l::gaussian_surrogate_cuda));
}
