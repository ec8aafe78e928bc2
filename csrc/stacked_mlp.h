// What the CPU and the CUDA implementation of `stacked_mlp` share: checking the arguments and
// laying out what is kept for the backward pass. See mg2l/ops/stacked_mlp.py for what it computes.
#pragma once

#include <string>
#include <vector>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

constexpr double kNormEps = 1e-5;  // of LayerNorm

struct MlpSizes {
  int64_t groups, rows, inputs;
  std::vector<int64_t> units;  // of every layer
  bool plain_last;             // the last layer is linear alone

  size_t layers() const { return units.size(); }
  size_t normalised() const { return layers() - (plain_last ? 1 : 0); }
  int64_t inputs_of(size_t layer) const { return layer == 0 ? inputs : units[layer - 1]; }

  // Normalised features that are inputs of a layer: they lie behind each other, [G, rows, units].
  int64_t kept_before(size_t layer) const {
    int64_t total = 0;
    for (size_t l = 0; l < layer; ++l) total += groups * rows * units[l];
    return total;
  }
  int64_t kept() const { return kept_before(layers() - 1); }

  // Mean and inverse standard deviation of every row of every normalised layer, [G, rows, 2] each.
  int64_t moments_before(size_t layer) const {
    return static_cast<int64_t>(layer) * groups * rows * 2;
  }
  int64_t moments() const { return moments_before(normalised()); }
};

inline MlpSizes check_stacked_mlp(const Tensor& x, const std::vector<Tensor>& weights,
                                  const std::vector<Tensor>& biases, bool plain_last,
                                  bool bfloat16) {
  constexpr const char* op = "stacked_mlp";
  check_floating(op, "x", x);
  check_bfloat16(op, "x", x, bfloat16);
  MG2L_CHECK(x.dim() == 3, op, ": x must have shape [G, rows, in], got ", to_text(sizes_of(x)));
  MG2L_CHECK(weights.size() > (plain_last ? 1 : 0), op,
             ": weights must hold at least one normalised layer, got ", weights.size(), " layers");
  MG2L_CHECK(weights.size() == biases.size(), op, ": biases must be as many as weights, ",
             weights.size(), ", got ", biases.size());
  MlpSizes sizes{x.size(0), x.size(1), x.size(2), {}, plain_last};
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::string weight = "weights[" + std::to_string(l) + "]";
    const std::string bias = "biases[" + std::to_string(l) + "]";
    const int64_t inputs = l == 0 ? sizes.inputs : sizes.units.back();
    MG2L_CHECK(weights[l].dim() == 3, op, ": ", weight, " must have shape [G, units, in], got ",
               to_text(sizes_of(weights[l])));
    const int64_t units = weights[l].size(1);
    MG2L_CHECK(units > 0, op, ": ", weight, " must have at least one unit, got 0");
    check_like(op, weight.c_str(), weights[l], "x", x, {sizes.groups, units, inputs},
               "[G, units, in]");
    check_like(op, bias.c_str(), biases[l], "x", x, {sizes.groups, units}, "[G, units]");
    sizes.units.push_back(units);
  }
  return sizes;
}

inline MlpSizes check_stacked_mlp_backward(const Tensor& grad, const Tensor& x,
                                           const std::vector<Tensor>& weights,
                                           const std::vector<Tensor>& biases, bool plain_last,
                                           bool bfloat16, const Tensor& y, const Tensor& kept,
                                           const Tensor& moments) {
  constexpr const char* op = "stacked_mlp_backward";
  MlpSizes sizes = check_stacked_mlp(x, weights, biases, plain_last, bfloat16);
  const Sizes outputs{sizes.groups, sizes.rows, sizes.units.back()};
  check_like(op, "grad", grad, "x", x, outputs, "[G, rows, units]");
  check_like(op, "y", y, "x", x, outputs, "[G, rows, units]");
  check_like(op, "kept", kept, "x", x, {sizes.kept()}, "[what forward kept]");
  check_like(op, "moments", moments, "x", x, {sizes.moments()}, "[what forward kept]");
  return sizes;
}

}  // namespace mg2l
