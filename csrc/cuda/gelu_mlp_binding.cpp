// Binds the CUDA kernels of `gelu_mlp` and `gelu_mlp_backward` to torch, and calls its products
// between them; compiled by the host compiler.
#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "../gelu_mlp.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

using torch::stable::matmul;
using torch::stable::transpose;

// A grid has so many blocks at most.
void check_grid(const GeluSizes& sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t widest = *std::max_element(sizes.units.begin(), sizes.units.end());
  MG2L_CHECK(sizes.rows * widest <= kMost, "gelu_mlp: rows times units must be at most ", kMost,
             " on CUDA, got ", sizes.rows * widest);
}

}  // namespace

std::tuple<Tensor, Tensor> gelu_mlp_cuda(const Tensor& x, const std::vector<Tensor>& weights,
                                         const std::vector<Tensor>& biases, bool keep) {
  const GeluSizes sizes = check_gelu_mlp(x, weights, biases);
  check_grid(sizes);
  const auto device = x.get_device_index();
  const DeviceGuard guard(device);
  Tensor kept = allocate(x, {keep ? sizes.kept() : 0});
  Tensor features = x;
  for (size_t l = 0; l < sizes.layers(); ++l) {
    const bool activate = l < sizes.hidden();
    const Tensor product = as_contiguous(matmul(features, transpose(weights[l], 0, 1)));
    const Tensor bias = as_contiguous(biases[l]);
    features = allocate(x, {sizes.rows, sizes.units[l]});
    for_launcher(x.scalar_type(), mg2l_gelu_mlp_float, mg2l_gelu_mlp_double,
                 [&](auto launcher, auto zero) {
                   using scalar_t = decltype(zero);
                   GeluForwardArgs<scalar_t> args{};
                   args.rows = sizes.rows;
                   args.units = sizes.units[l];
                   args.activate = activate;
                   args.product = data<scalar_t>(product);
                   args.bias = data<scalar_t>(bias);
                   args.features = data<scalar_t>(features);
                   if (keep && activate) args.kept = data<scalar_t>(kept) + sizes.kept_before(l);
                   check_launch("gelu_mlp", launcher(&args, current_stream(device)));
                 });
  }
  return {features, kept};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> gelu_mlp_backward_cuda(
    const Tensor& grad_, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const Tensor& kept_, bool want_x) {
  const GeluSizes sizes = check_gelu_mlp_backward(grad_, x, weights, biases, kept_);
  check_grid(sizes);
  const auto device = x.get_device_index();
  const DeviceGuard guard(device);
  const Tensor kept = as_contiguous(kept_);
  Tensor grad = as_contiguous(grad_);
  std::vector<Tensor> grad_weights(sizes.layers(), grad), grad_biases(sizes.layers(), grad);
  for (size_t l = sizes.layers(); l-- > 0;) {
    Tensor inputs = x, grad_product = grad;
    if (l > 0) {
      const Tensor grad_features = as_contiguous(matmul(grad, weights[l]));
      inputs = allocate(x, {sizes.rows, sizes.units[l - 1]});
      grad_product = allocate_like(inputs);
      for_launcher(x.scalar_type(), mg2l_gelu_mlp_backward_float, mg2l_gelu_mlp_backward_double,
                   [&](auto launcher, auto zero) {
                     using scalar_t = decltype(zero);
                     GeluBackwardArgs<scalar_t> args{};
                     args.rows = sizes.rows;
                     args.units = sizes.units[l - 1];
                     args.grad = data<scalar_t>(grad_features);
                     args.kept = data<scalar_t>(kept) + sizes.kept_before(l - 1);
                     args.features = data<scalar_t>(inputs);
                     args.grad_product = data<scalar_t>(grad_product);
                     check_launch("gelu_mlp_backward", launcher(&args, current_stream(device)));
                   });
    }
    grad_weights[l] = as_contiguous(matmul(transpose(grad, 0, 1), inputs));
    const Sizes rows_axis{0};
    grad_biases[l] = torch::stable::sum(grad, rows_axis);
    if (l > 0) grad = grad_product;
  }
  return {want_x ? as_contiguous(matmul(grad, weights[0])) : allocate(x, {0}), grad_weights,
          grad_biases};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("gelu_mlp", TORCH_BOX(&mg2l::gelu_mlp_cuda));
  m.impl("gelu_mlp_backward", TORCH_BOX(&mg2l::gelu_mlp_backward_cuda));
}
