// Binds the CUDA kernels of `contrast` to torch; compiled by the host compiler.
#include <tuple>
#include <utility>

#include "../contrast.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contrast_cuda(
    const Tensor& raw, const Tensor& keys, const Tensor& positive, double temperature,
    double kl_weight, double std_floor) {
  check_contrast(raw, keys, positive, temperature, kl_weight, std_floor);
  const DeviceGuard guard(raw.get_device_index());
  ContrastTensors tensors(raw, keys, positive);
  Tensor factors = allocate(tensors.raw, {tensors.groups, tensors.rows, tensors.keys_count});
  Tensor measured = allocate(tensors.raw, {tensors.groups, 3, tensors.rows});
  for_launcher(raw.scalar_type(), mg2l_contrast_float, mg2l_contrast_double,
               [&](auto launcher, auto zero) {
                 using scalar_t = decltype(zero);
                 ContrastArgs<scalar_t> args{};
                 args.groups = tensors.groups;
                 args.rows = tensors.rows;
                 args.keys_count = tensors.keys_count;
                 args.width = tensors.width;
                 args.temperature = static_cast<scalar_t>(temperature);
                 args.kl_weight = static_cast<scalar_t>(kl_weight);
                 args.std_floor = static_cast<scalar_t>(std_floor);
                 args.raw = data<scalar_t>(std::as_const(tensors.raw));
                 args.keys = data<scalar_t>(std::as_const(tensors.keys));
                 args.positive = data<int64_t>(std::as_const(tensors.positive));
                 args.factors = data<scalar_t>(factors);
                 args.measured = data<scalar_t>(measured);
                 args.raw_slope = data<scalar_t>(tensors.raw_slope);
                 args.key_slope = data<scalar_t>(tensors.key_slope);
                 args.loss = data<scalar_t>(tensors.loss);
                 args.bound = data<scalar_t>(tensors.bound);
                 args.accuracy = data<scalar_t>(tensors.accuracy);
                 args.kl = data<scalar_t>(tensors.kl);
                 check_launch("contrast", launcher(&args, current_stream(raw.get_device_index())));
               });
  return {tensors.loss, tensors.bound,     tensors.accuracy,
          tensors.kl,   tensors.raw_slope, tensors.key_slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) { m.impl("contrast", TORCH_BOX(&mg2l::contrast_cuda)); }
