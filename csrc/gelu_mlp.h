// What the CPU and the CUDA implementation of `gelu_mlp` share: checking the arguments and laying
// out what is kept for the backward pass. See mg2l/ops/gelu_mlp.py for what it computes.
#pragma once

#include <string>
#include <vector>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

struct GeluSizes {
  int64_t rows, inputs;
  std::vector<int64_t> units;  // of every layer

  size_t layers() const { return units.size(); }
  size_t hidden() const { return layers() - 1; }
  int64_t inputs_of(size_t layer) const { return layer == 0 ? inputs : units[layer - 1]; }

  // Products of hidden layers before the activation: they lie behind each other, [rows, units].
  int64_t kept_before(size_t layer) const {
    int64_t total = 0;
    for (size_t l = 0; l < layer; ++l) total += rows * units[l];
    return total;
  }
  int64_t kept() const { return kept_before(hidden()); }
};

inline GeluSizes check_gelu_mlp(const Tensor& x, const std::vector<Tensor>& weights,
                                const std::vector<Tensor>& biases) {
  constexpr const char* op = "gelu_mlp";
  check_floating(op, "x", x);
  MG2L_CHECK(x.dim() == 2, op, ": x must have shape [rows, in], got ", to_text(sizes_of(x)));
  MG2L_CHECK(!weights.empty(), op, ": weights must hold at least one layer, got 0");
  MG2L_CHECK(weights.size() == biases.size(), op, ": biases must be as many as weights, ",
             weights.size(), ", got ", biases.size());
  GeluSizes sizes{x.size(0), x.size(1), {}};
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::string weight = "weights[" + std::to_string(l) + "]";
    const std::string bias = "biases[" + std::to_string(l) + "]";
    const int64_t inputs = l == 0 ? sizes.inputs : sizes.units.back();
    MG2L_CHECK(weights[l].dim() == 2, op, ": ", weight, " must have shape [units, in], got ",
               to_text(sizes_of(weights[l])));
    const int64_t units = weights[l].size(0);
    MG2L_CHECK(units > 0, op, ": ", weight, " must have at least one unit, got 0");
    check_like(op, weight.c_str(), weights[l], "x", x, {units, inputs}, "[units, in]");
    check_like(op, bias.c_str(), biases[l], "x", x, {units}, "[units]");
    sizes.units.push_back(units);
  }
  return sizes;
}

inline GeluSizes check_gelu_mlp_backward(const Tensor& grad, const Tensor& x,
                                         const std::vector<Tensor>& weights,
                                         const std::vector<Tensor>& biases, const Tensor& kept) {
  constexpr const char* op = "gelu_mlp_backward";
  GeluSizes sizes = check_gelu_mlp(x, weights, biases);
  check_like(op, "grad", grad, "x", x, {sizes.rows, sizes.units.back()}, "[rows, units]");
  check_like(op, "kept", kept, "x", x, {sizes.kept()}, "[what forward kept]");
  return sizes;
}

}  // namespace mg2l
