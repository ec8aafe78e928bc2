// What the CPU and the CUDA implementation of `encode_context` share: checking the arguments and
// laying them out. See mg2l/ops/encode_context.py for what the operator computes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

// Sizes of a call. `rows` is the number of rows `[A, F]` that `context` holds, `units` the width of
// every hidden layer.
struct EncodeSizes {
  int64_t contexts, transitions, agents, features, rows;
  Sizes units;
  bool own_weights;  // per agent

  // Sets of weights: one per agent, or one for all.
  int64_t weight_sets() const { return own_weights ? agents : 1; }
};

inline EncodeSizes check_encode_context(const Tensor& context, const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases, const Tensor& query,
                                        const std::optional<Tensor>& index, bool bfloat16) {
  constexpr const char* op = "encode_context";
  const ScalarType dtype = context.scalar_type();
  MG2L_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
      op, ": context must be float32, float64 or bfloat16, got ", to_text(dtype));
  check_bfloat16(op, "context", context, bfloat16);
  MG2L_CHECK(!weights.empty() && weights.size() == biases.size(), op,
             ": weights and biases must hold one tensor for each of at least one layer, got ",
             weights.size(), " and ", biases.size());
  const auto like_context = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, dtype);
    check_same_device(op, name, tensor, "context", context);
  };

  EncodeSizes sizes{};
  const Sizes given = sizes_of(context);
  if (index) {
    check_dtype(op, "index", *index, ScalarType::Long);
    check_same_device(op, "index", *index, "context", context);
    MG2L_CHECK(index->dim() == 2, op, ": index must have shape [B, T], got ",
               to_text(sizes_of(*index)));
    MG2L_CHECK(context.dim() == 3, op,
               ": context must have shape [R, A, F] when index is given, got ", to_text(given));
    sizes.contexts = index->size(0);
    sizes.transitions = index->size(1);
    sizes.rows = given[0];
  } else {
    MG2L_CHECK(context.dim() == 4, op, ": context must have shape [B, T, A, F], got ",
               to_text(given));
    sizes.contexts = given[0];
    sizes.transitions = given[1];
    sizes.rows = given[0] * given[1];
  }
  MG2L_CHECK(sizes.transitions >= 1, op, ": a context must hold at least 1 transition, got 0");
  sizes.agents = given[given.size() - 2];
  sizes.features = given.back();
  sizes.own_weights = weights[0].dim() == 3;
  Sizes expected;
  if (sizes.own_weights) expected.push_back(sizes.agents);
  int64_t inputs = sizes.features;
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::string at = "[" + std::to_string(l) + "]";
    const std::string weight_name = "weights" + at, bias_name = "biases" + at;
    like_context(weight_name.c_str(), weights[l]);
    like_context(bias_name.c_str(), biases[l]);
    MG2L_CHECK(weights[l].dim() == 2 || weights[l].dim() == 3, op, ": ", weight_name,
               " must have shape [H, F] or [A, H, F], got ", to_text(sizes_of(weights[l])));
    const int64_t units = weights[l].size(weights[l].dim() - 2);
    MG2L_CHECK(units >= 1, op, ": ", weight_name, " must have at least 1 hidden unit, got 0");
    expected.push_back(units);
    expected.push_back(inputs);
    check_sizes(op, weight_name.c_str(), weights[l], expected,
                sizes.own_weights ? "[A, H, F]" : "[H, F]");
    expected.pop_back();
    check_sizes(op, bias_name.c_str(), biases[l], expected, sizes.own_weights ? "[A, H]" : "[H]");
    expected.pop_back();
    sizes.units.push_back(units);
    inputs = units;
  }
  expected.push_back(inputs);
  like_context("query", query);
  check_sizes(op, "query", query, expected, sizes.own_weights ? "[A, H]" : "[H]");
  return sizes;
}

// The dtype that sums are kept in.
inline ScalarType accumulated(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

// Also what the forward pass left for the backward pass.
inline EncodeSizes check_encode_context_backward(
    const Tensor& grad_pooled, const Tensor& context, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const Tensor& query, const std::optional<Tensor>& index,
    bool bfloat16, const Tensor& pooled, const Tensor& lse, bool want_context) {
  constexpr const char* op = "encode_context_backward";
  const EncodeSizes sizes = check_encode_context(context, weights, biases, query, index, bfloat16);
  MG2L_CHECK(!(index && want_context), op, ": rows gathered by index get no gradients");
  MG2L_CHECK(!(bfloat16 && want_context), op, ": with bfloat16 the context gets no gradients");
  const ScalarType sums = accumulated(context.scalar_type());
  const Sizes pairs{sizes.contexts, sizes.agents};
  const Sizes vectors{sizes.contexts, sizes.agents, sizes.units.back()};
  check_like(op, "grad_pooled", grad_pooled, "context", context, vectors, "[B, A, H]", sums);
  check_like(op, "pooled", pooled, "context", context, vectors, "[B, A, H]", sums);
  check_like(op, "lse", lse, "context", context, pairs, "[B, A]", sums);
  return sizes;
}

// Arguments, contiguous.
struct EncodeTensors {
  Tensor context, query;
  std::vector<Tensor> weights, biases;
  std::optional<Tensor> index;

  EncodeTensors(const Tensor& context_, const std::vector<Tensor>& weights_,
                const std::vector<Tensor>& biases_, const Tensor& query_,
                const std::optional<Tensor>& index_)
      : context(as_contiguous(context_)), query(as_contiguous(query_)) {
    for (const Tensor& weight : weights_) weights.push_back(as_contiguous(weight));
    for (const Tensor& bias : biases_) biases.push_back(as_contiguous(bias));
    if (index_) index = as_contiguous(*index_);
  }
};

// Results of `encode_context`; weights hold nothing where they are not wanted.
struct EncodeOutputs {
  Tensor pooled, lse, weights;

  EncodeOutputs(const Tensor& context, const EncodeSizes& sizes, bool return_weights)
      : pooled(allocate(context, {sizes.contexts, sizes.agents, sizes.units.back()},
                        accumulated(context.scalar_type()))),
        lse(allocate(context, {sizes.contexts, sizes.agents}, accumulated(context.scalar_type()))),
        weights(allocate(context, {return_weights ? sizes.contexts : 0, sizes.agents,
                                   return_weights ? sizes.transitions : 0})) {}
};

// Results of `encode_context_backward`; context holds nothing where it is not wanted.
struct EncodeBackwardOutputs {
  Tensor context, query;
  std::vector<Tensor> weights, biases;

  EncodeBackwardOutputs(const Tensor& context_, const std::vector<Tensor>& weights_,
                        const std::vector<Tensor>& biases_, const Tensor& query_, bool want_context)
      : context(allocate(context_, want_context ? sizes_of(context_) : Sizes{0})),
        query(allocate_like(query_)) {
    for (const Tensor& weight : weights_) weights.push_back(allocate_like(weight));
    for (const Tensor& bias : biases_) biases.push_back(allocate_like(bias));
  }
};

// Where rows of the context are found: in order, or through an index that is checked here.
inline void check_rows(const int64_t* index, int64_t count, int64_t rows) {
  int64_t lowest = 0, highest = 0;
  for (int64_t i = 0; i < count; ++i) {
    lowest = index[i] < lowest ? index[i] : lowest;
    highest = index[i] > highest ? index[i] : highest;
  }
  MG2L_CHECK(count == 0 || (lowest >= 0 && highest < rows),
             "encode_context: index must be in [0, R) = [0, ", rows, "), got ",
             lowest < 0 ? lowest : highest);
}

}  // namespace mg2l
