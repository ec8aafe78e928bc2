// Kernels of `gelu_mlp` and `gelu_mlp_backward`: plain pointers, no torch header.
//
// Products are cuBLAS's, called by the binding; here is what lies between them: bias and GELU, and
// its gradient. A thread works on a number, its neighbours on the next ones, so that loads and
// stores coalesce; memory bounds them.
#pragma once

#include <cstdint>

#include "gelu.cuh"
#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kGeluThreads = 256;

// Adds the bias, and activates unless it is the last layer.
//
// Launch: grid.x * kGeluThreads >= rows * units. Writes features, and kept where it is not null.
template <typename scalar_t>
__global__ void gelu_mlp_kernel(GeluForwardArgs<scalar_t> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGeluThreads + threadIdx.x;
  if (i >= args.rows * args.units) return;
  const scalar_t h = args.product[i] + args.bias[i % args.units];
  if (args.kept != nullptr) args.kept[i] = h;
  scalar_t value = h, slope;
  if (args.activate) gelu(false, h, value, slope);
  args.features[i] = value;
}

// Gradients of features become those of what was activated; features are computed again.
//
// Launch: grid.x * kGeluThreads >= rows * units. Writes features and grad_product.
template <typename scalar_t>
__global__ void gelu_mlp_backward_kernel(GeluBackwardArgs<scalar_t> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGeluThreads + threadIdx.x;
  if (i >= args.rows * args.units) return;
  scalar_t value, slope;
  gelu(false, args.kept[i], value, slope);
  args.features[i] = value;
  args.grad_product[i] = args.grad[i] * slope;
}

}  // namespace mg2l
