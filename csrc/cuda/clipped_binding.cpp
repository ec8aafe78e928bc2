// Binds the CUDA kernels of `surrogate` and `value_loss` to torch; compiled by the host compiler.
#include <limits>
#include <tuple>
#include <utility>

#include "../clipped.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

template <typename scalar_t, typename Launcher>
void launch(const char* op, Launcher launcher, ClippedTensors& tensors, double weight,
            std::optional<double> clip, std::optional<double> delta, Tensor* kl, Tensor* fraction) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  ClippedArgs<scalar_t> args{};
  args.agents = tensors.agents;
  args.rows = tensors.rows;
  args.weight = static_cast<scalar_t>(weight);
  args.clip = static_cast<scalar_t>(clip.value_or(kInfinite));
  args.delta = static_cast<scalar_t>(delta.value_or(kInfinite));
  args.first = data<scalar_t>(std::as_const(tensors.first));
  args.second = data<scalar_t>(std::as_const(tensors.second));
  args.third = data<scalar_t>(std::as_const(tensors.third));
  args.weights = data_or_null<scalar_t>(tensors.weights);
  args.slope = data<scalar_t>(tensors.slope);
  args.loss = data<scalar_t>(tensors.loss);
  if (kl != nullptr) args.kl = data<scalar_t>(*kl);
  if (fraction != nullptr) args.clip_fraction = data<scalar_t>(*fraction);
  check_launch(op, launcher(&args, current_stream(tensors.first.get_device_index())));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> surrogate_cuda(const Tensor& log_probs,
                                                          const Tensor& before,
                                                          const Tensor& advantages,
                                                          const std::optional<Tensor>& weights,
                                                          double weight, double clip) {
  check_surrogate(log_probs, before, advantages, weights, clip);
  const DeviceGuard guard(log_probs.get_device_index());
  ClippedTensors tensors(log_probs, before, advantages, weights);
  Tensor kl = allocate(tensors.loss, {tensors.agents});
  Tensor fraction = allocate(tensors.loss, {tensors.agents});
  for_launcher(log_probs.scalar_type(), mg2l_surrogate_float, mg2l_surrogate_double,
               [&](auto launcher, auto zero) {
                 launch<decltype(zero)>("surrogate", launcher, tensors, weight, clip, std::nullopt,
                                        &kl, &fraction);
               });
  return {tensors.loss, kl, fraction, tensors.slope};
}

std::tuple<Tensor, Tensor> value_loss_cuda(const Tensor& prediction, const Tensor& old,
                                           const Tensor& target,
                                           const std::optional<Tensor>& weights, double weight,
                                           std::optional<double> clip,
                                           std::optional<double> delta) {
  check_value_loss(prediction, old, target, weights, clip, delta);
  const DeviceGuard guard(prediction.get_device_index());
  ClippedTensors tensors(prediction, old, target, weights);
  for_launcher(prediction.scalar_type(), mg2l_value_loss_float, mg2l_value_loss_double,
               [&](auto launcher, auto zero) {
                 launch<decltype(zero)>("value_loss", launcher, tensors, weight, clip, delta,
                                        nullptr, nullptr);
               });
  return {tensors.loss, tensors.slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("surrogate", TORCH_BOX(&mg2l::surrogate_cuda));
  m.impl("value_loss", TORCH_BOX(&mg2l::value_loss_cuda));
}
