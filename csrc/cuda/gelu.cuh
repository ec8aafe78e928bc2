// GELU, which `encode_context` and `gelu_mlp` share.
#pragma once

#include <cmath>

#include "portable.cuh"

namespace mg2l {

// GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415) and its derivative.
template <typename scalar_t>
__device__ void gelu(bool tanh_gelu, scalar_t x, scalar_t& value, scalar_t& slope) {
  if (tanh_gelu) {
    constexpr scalar_t kScale = scalar_t(0.79788456080286536), kCubic = scalar_t(0.044715);
    const scalar_t square = x * x;
    const scalar_t u = x * kScale * (square * kCubic + scalar_t(1));
    const scalar_t gate = scalar_t(0.5) * (scalar_t(1) + scalar_t(tanh(u)));
    value = x * gate;
    slope = gate + scalar_t(2) * value * (scalar_t(1) - gate) * kScale *
                       (square * (scalar_t(3) * kCubic) + scalar_t(1));
  } else {
    const scalar_t gate =
        scalar_t(0.5) * (scalar_t(1) + scalar_t(erf(x * scalar_t(0.70710678118654752))));
    value = x * gate;
    slope = gate + x * scalar_t(exp(scalar_t(-0.5) * x * x)) * scalar_t(0.39894228040143268);
  }
}

}  // namespace mg2l
