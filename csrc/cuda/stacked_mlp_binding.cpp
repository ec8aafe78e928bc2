// Binds the CUDA kernels of `stacked_mlp` and `stacked_mlp_backward` to torch, and calls its
// products between them; compiled by the host compiler.
#include <limits>
#include <tuple>
#include <utility>

#include "../stacked_mlp.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

using torch::stable::matmul;
using torch::stable::transpose;

// A grid has so many blocks at most; one works on four rows.
void check_grid(const MlpSizes& sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  MG2L_CHECK(sizes.groups * sizes.rows <= kMost, "stacked_mlp: G times rows must be at most ",
             kMost, " on CUDA, got ", sizes.groups * sizes.rows);
}

// Inputs of a layer among what is kept, [G, rows, in].
Tensor inputs_of(const MlpSizes& sizes, const Tensor& x, const Tensor& kept, size_t layer) {
  if (layer == 0) return x;
  const int64_t start = sizes.kept_before(layer - 1);
  const int64_t length = sizes.kept_before(layer) - start;
  Tensor flat = torch::stable::narrow(const_cast<Tensor&>(kept), 0, start, length);
  return torch::stable::view(flat, {sizes.groups, sizes.rows, sizes.units[layer - 1]});
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> stacked_mlp_cuda(const Tensor& x,
                                                    const std::vector<Tensor>& weights,
                                                    const std::vector<Tensor>& biases, bool relu,
                                                    bool plain_last, bool bfloat16, bool keep) {
  const MlpSizes sizes = check_stacked_mlp(x, weights, biases, plain_last, bfloat16);
  check_grid(sizes);
  const auto device = x.get_device_index();
  const DeviceGuard guard(device);
  Tensor kept = allocate(x, {keep ? sizes.kept() : 0});
  Tensor moments = allocate(x, {keep ? sizes.moments() : 0});
  Tensor features = x;
  for (size_t l = 0; l < sizes.layers(); ++l) {
    const bool last = l + 1 == sizes.layers(), normalise = l < sizes.normalised();
    const Tensor product = as_contiguous(matmul(features, transpose(weights[l], 1, 2)));
    const Tensor bias = as_contiguous(biases[l]);
    features = keep && !last ? inputs_of(sizes, x, kept, l + 1)
                             : allocate(x, {sizes.groups, sizes.rows, sizes.units[l]});
    for_launcher(x.scalar_type(), mg2l_stacked_mlp_float, mg2l_stacked_mlp_double,
                 [&](auto launcher, auto zero) {
                   using scalar_t = decltype(zero);
                   MlpForwardArgs<scalar_t> args{};
                   args.groups = sizes.groups;
                   args.rows = sizes.rows;
                   args.units = sizes.units[l];
                   args.normalise = normalise;
                   args.relu = relu;
                   args.epsilon = static_cast<scalar_t>(kNormEps);
                   args.product = data<scalar_t>(product);
                   args.bias = data<scalar_t>(bias);
                   args.features = data<scalar_t>(features);
                   if (keep && normalise)
                     args.moments = data<scalar_t>(moments) + sizes.moments_before(l);
                   check_launch("stacked_mlp", launcher(&args, current_stream(device)));
                 });
  }
  return {features, kept, moments};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> stacked_mlp_backward_cuda(
    const Tensor& grad_, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, bool relu, bool plain_last, bool bfloat16, const Tensor& y_,
    const Tensor& kept_, const Tensor& moments_, bool want_x) {
  const MlpSizes sizes = check_stacked_mlp_backward(grad_, x, weights, biases, plain_last, bfloat16,
                                                    y_, kept_, moments_);
  check_grid(sizes);
  const auto device = x.get_device_index();
  const DeviceGuard guard(device);
  const Tensor y = as_contiguous(y_), kept = as_contiguous(kept_);
  const Tensor moments = as_contiguous(moments_);
  Tensor grad = as_contiguous(grad_);
  std::vector<Tensor> grad_weights(sizes.layers(), grad), grad_biases(sizes.layers(), grad);
  for (size_t l = sizes.layers(); l-- > 0;) {
    if (l < sizes.normalised()) {
      const bool last = l + 1 == sizes.layers();
      const Tensor features = last ? y : inputs_of(sizes, x, kept, l + 1);
      Tensor grad_product = allocate(x, {sizes.groups, sizes.rows, sizes.units[l]});
      for_launcher(x.scalar_type(), mg2l_stacked_mlp_backward_float,
                   mg2l_stacked_mlp_backward_double, [&](auto launcher, auto zero) {
                     using scalar_t = decltype(zero);
                     MlpBackwardArgs<scalar_t> args{};
                     args.groups = sizes.groups;
                     args.rows = sizes.rows;
                     args.units = sizes.units[l];
                     args.relu = relu;
                     args.grad = data<scalar_t>(std::as_const(grad));
                     args.features = data<scalar_t>(features);
                     args.moments = data<scalar_t>(moments) + sizes.moments_before(l);
                     args.grad_product = data<scalar_t>(grad_product);
                     check_launch("stacked_mlp_backward", launcher(&args, current_stream(device)));
                   });
      grad = grad_product;
    }
    grad_weights[l] = as_contiguous(matmul(transpose(grad, 1, 2), inputs_of(sizes, x, kept, l)));
    const Sizes rows_axis{1};
    grad_biases[l] = torch::stable::sum(grad, rows_axis);
    if (l > 0 || want_x) grad = as_contiguous(matmul(grad, weights[l]));
  }
  return {want_x ? grad : allocate(x, {0}), grad_weights, grad_biases};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("stacked_mlp", TORCH_BOX(&mg2l::stacked_mlp_cuda));
  m.impl("stacked_mlp_backward", TORCH_BOX(&mg2l::stacked_mlp_backward_cuda));
}
