// What the CPU and the CUDA implementation of `pia_pool` share: checking the arguments. See
// mg2l/ops/pia_pool.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

// x is `[outer, length, inner, width]`: sets lie along `length`, one per (outer, inner).
struct PoolSizes {
  int64_t outer, length, inner, width, heads;
};

inline PoolSizes check_pia_pool(const Tensor& x, const Tensor& query,
                                const std::optional<Tensor>& mask) {
  constexpr const char* op = "pia_pool";
  check_floating(op, "x", x);
  MG2L_CHECK(x.dim() == 4, op, ": x must have shape [outer, T, inner, D], got ",
             to_text(sizes_of(x)));
  check_dtype(op, "query", query, x.scalar_type());
  check_same_device(op, "query", query, "x", x);
  MG2L_CHECK(query.dim() == 2 && query.size(1) == x.size(3), op,
             ": query must have shape [heads, D] with D = ", x.size(3), ", got ",
             to_text(sizes_of(query)));
  MG2L_CHECK(x.size(1) >= 1, op, ": a set must hold at least 1 input, got 0");
  if (mask) {
    check_dtype(op, "mask", *mask, ScalarType::Bool);
    check_same_device(op, "mask", *mask, "x", x);
    const Sizes given = sizes_of(x);
    check_sizes(op, "mask", *mask, Sizes(given.begin(), given.end() - 1), "x without D");
  }
  return {x.size(0), x.size(1), x.size(2), x.size(3), query.size(0)};
}

// Also what the forward pass left for the backward pass.
inline PoolSizes check_pia_pool_backward(const Tensor& grad, const Tensor& x, const Tensor& query,
                                         const std::optional<Tensor>& mask, const Tensor& pooled,
                                         const Tensor& lse) {
  constexpr const char* op = "pia_pool_backward";
  const PoolSizes sizes = check_pia_pool(x, query, mask);
  const Sizes rows{sizes.outer, sizes.inner, sizes.heads};
  const Sizes vectors{sizes.outer, sizes.inner, sizes.heads, sizes.width};
  check_like(op, "grad", grad, "x", x, vectors, "[outer, inner, heads, D]");
  check_like(op, "pooled", pooled, "x", x, vectors, "[outer, inner, heads, D]");
  check_like(op, "lse", lse, "x", x, rows, "[outer, inner, heads]");
  return sizes;
}

}  // namespace mg2l
