// Binds the CUDA kernels of `innovation_moments` and `innovation_moments_backward` to torch;
// compiled by the host compiler.
#include <limits>
#include <tuple>
#include <utility>

#include "../innovation_moments.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

template <typename scalar_t>
InnovationArgs<scalar_t> arguments(const InnovationSizes& sizes, const InnovationTensors& tensors) {
  InnovationArgs<scalar_t> args{};
  args.contexts = sizes.contexts;
  args.steps = sizes.steps;
  args.agents = sizes.agents;
  args.width = sizes.width;
  args.features = sizes.features;
  args.observation = sizes.observation;
  args.rows = sizes.rows;
  args.series = data<scalar_t>(tensors.series);
  args.transitions = data<scalar_t>(tensors.transitions);
  args.places = data_or_null<int64_t>(tensors.places);
  args.coefficients = data<scalar_t>(tensors.coefficients);
  return args;
}

// A grid has so many blocks at most.
void check_grid(const InnovationSizes& sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  MG2L_CHECK(sizes.contexts * sizes.agents <= kMost,
             "innovation_moments: B times A must be at most ", kMost, " on CUDA, got ",
             sizes.contexts * sizes.agents);
}

}  // namespace

Tensor innovation_moments_cuda(const Tensor& series, const Tensor& transitions,
                               const Tensor& coefficients, int64_t observation,
                               const std::optional<Tensor>& places) {
  const InnovationSizes sizes =
      check_innovation_moments(series, transitions, coefficients, observation, places);
  check_grid(sizes);
  const auto device = series.get_device_index();
  const DeviceGuard guard(device);
  const InnovationTensors tensors(series, transitions, coefficients, places);
  Tensor moments =
      allocate(series, {sizes.contexts, kInnovationKinds, sizes.agents, sizes.width, sizes.width},
               ScalarType::Double);
  for_launcher(series.scalar_type(), mg2l_innovation_moments_float, mg2l_innovation_moments_double,
               [&](auto launcher, auto zero) {
                 auto args = arguments<decltype(zero)>(sizes, tensors);
                 args.moments = data<double>(moments);
                 check_launch("innovation_moments", launcher(&args, current_stream(device)));
               });
  return moments;
}

std::tuple<Tensor, Tensor> innovation_moments_backward_cuda(
    const Tensor& grad_, const Tensor& series, const Tensor& transitions,
    const Tensor& coefficients, int64_t observation, const std::optional<Tensor>& places) {
  const InnovationSizes sizes = check_innovation_moments_backward(
      grad_, series, transitions, coefficients, observation, places);
  check_grid(sizes);
  const auto device = series.get_device_index();
  const DeviceGuard guard(device);
  const InnovationTensors tensors(series, transitions, coefficients, places);
  const Tensor grad = as_contiguous(grad_);
  Tensor grad_series = allocate(series, sizes_of(series), ScalarType::Double);
  Tensor grad_coefficients =
      allocate(series, {sizes.contexts, sizes.agents, kInnovationKinds}, ScalarType::Double);
  for_launcher(series.scalar_type(), mg2l_innovation_moments_backward_float,
               mg2l_innovation_moments_backward_double, [&](auto launcher, auto zero) {
                 auto args = arguments<decltype(zero)>(sizes, tensors);
                 args.grad = data<double>(grad);
                 args.grad_series = data<double>(grad_series);
                 args.grad_coefficients = data<double>(grad_coefficients);
                 check_launch("innovation_moments_backward",
                              launcher(&args, current_stream(device)));
               });
  return {grad_series, grad_coefficients};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("innovation_moments", TORCH_BOX(&mg2l::innovation_moments_cuda));
  m.impl("innovation_moments_backward", TORCH_BOX(&mg2l::innovation_moments_backward_cuda));
}
