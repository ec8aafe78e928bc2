// Binds the CUDA kernels of `film` to torch; compiled by the host compiler.
#include <tuple>
#include <utility>

#include "../film.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

template <typename scalar_t>
FilmArgs<scalar_t> args_of(const FilmTensors& tensors) {
  FilmArgs<scalar_t> args{};
  args.groups = tensors.sizes.groups;
  args.rows = tensors.sizes.rows;
  args.width = tensors.sizes.width;
  args.latents = tensors.sizes.latents;
  args.shared = tensors.index.has_value();
  args.features = data<scalar_t>(tensors.features);
  args.generated = data<scalar_t>(tensors.generated);
  args.index = data_or_null<int64_t>(tensors.index);
  return args;
}

}  // namespace

Tensor film_cuda(const Tensor& features, const Tensor& generated,
                 const std::optional<Tensor>& index) {
  const FilmSizes sizes = check_film(features, generated, index);
  const auto device = features.get_device_index();
  const DeviceGuard guard(device);
  const FilmTensors tensors(sizes, features, generated, index);
  Tensor y = allocate_like(tensors.features);
  for_launcher(features.scalar_type(), mg2l_film_float, mg2l_film_double,
               [&](auto launcher, auto zero) {
                 using scalar_t = decltype(zero);
                 FilmForwardArgs<scalar_t> args{};
                 args.in = args_of<scalar_t>(tensors);
                 args.y = data<scalar_t>(y);
                 check_launch("film", launcher(&args, current_stream(device)));
               });
  return y;
}

std::tuple<Tensor, Tensor> film_backward_cuda(const Tensor& grad_, const Tensor& features,
                                              const Tensor& generated,
                                              const std::optional<Tensor>& index) {
  const FilmSizes sizes = check_film_backward(grad_, features, generated, index);
  const auto device = features.get_device_index();
  const DeviceGuard guard(device);
  const FilmTensors tensors(sizes, features, generated, index);
  const Tensor grad = as_contiguous(grad_);
  Tensor to_features = allocate_like(features), to_generated = allocate_like(generated);
  for_launcher(features.scalar_type(), mg2l_film_backward_float, mg2l_film_backward_double,
               [&](auto launcher, auto zero) {
                 using scalar_t = decltype(zero);
                 FilmBackwardArgs<scalar_t> args{};
                 args.in = args_of<scalar_t>(tensors);
                 args.grad = data<scalar_t>(grad);
                 args.grad_features = data<scalar_t>(to_features);
                 args.grad_generated = data<scalar_t>(to_generated);
                 check_launch("film_backward", launcher(&args, current_stream(device)));
               });
  return {to_features, to_generated};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("film", TORCH_BOX(&mg2l::film_cuda));
  m.impl("film_backward", TORCH_BOX(&mg2l::film_backward_cuda));
}
