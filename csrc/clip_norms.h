// What the CPU and the CUDA implementation of `clip_norms` share: checking the arguments. See
// mg2l/ops/clip_norms.py for what the operator computes.
#pragma once

#include <vector>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

constexpr double kNormFloor = 1e-6;  // added to a norm that is divided by, as in torch

// Checks the gradients, and returns how many groups they have. Without any, the dispatcher finds no
// kernel: Python says so.
inline int64_t check_clip_norms(const std::vector<Tensor>& gradients, double limit,
                                bool per_group) {
  constexpr const char* op = "clip_norms";
  MG2L_CHECK(limit > 0, op, ": limit must be positive, got ", limit);
  const Tensor& first = gradients[0];
  check_floating(op, "gradients[0]", first);
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& gradient = gradients[i];
    const std::string name = "gradients[" + std::to_string(i) + "]";
    check_dtype(op, name.c_str(), gradient, first.scalar_type());
    check_same_device(op, name.c_str(), gradient, "gradients[0]", first);
    MG2L_CHECK(gradient.is_contiguous(), op, ": ", name, " must be contiguous");
    if (!per_group) continue;
    MG2L_CHECK(gradient.dim() > 0, op, ": ", name, " must have shape [G, *], got []");
    MG2L_CHECK(gradient.size(0) == first.size(0), op, ": ", name, " must have shape [G, *] = [",
               first.size(0), ", *], got ", to_text(sizes_of(gradient)));
  }
  return per_group ? first.size(0) : 1;
}

}  // namespace mg2l
