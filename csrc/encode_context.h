// What the CPU and the CUDA implementation of `encode_context` share: judging the arguments and
// laying them out. See mg2l/ops/encode_context.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

// Sizes of a call. `rows` is the number of rows `[A, F]` that `context` holds.
struct EncodeSizes {
  int64_t contexts, transitions, agents, features, hidden, rows;
  bool own_weights;  // per agent

  // Sets of weights: one per agent, or one for all.
  int64_t weight_sets() const { return own_weights ? agents : 1; }
};

inline EncodeSizes check_encode_context(const Tensor& context, const Tensor& weight,
                                        const Tensor& bias, const Tensor& query,
                                        const std::optional<Tensor>& index) {
  constexpr const char* op = "encode_context";
  const ScalarType dtype = context.scalar_type();
  MG2L_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
      op, ": context must be float32, float64 or bfloat16, got ", to_text(dtype));
  const auto like_context = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, dtype);
    check_same_device(op, name, tensor, "context", context);
  };
  like_context("weight", weight);
  like_context("bias", bias);
  like_context("query", query);

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
  sizes.own_weights = weight.dim() == 3;
  MG2L_CHECK(weight.dim() == 2 || weight.dim() == 3, op,
             ": weight must have shape [H, F] or [A, H, F], got ", to_text(sizes_of(weight)));
  sizes.hidden = weight.size(weight.dim() - 2);
  Sizes expected{sizes.hidden, sizes.features};
  if (sizes.own_weights) expected.insert(expected.begin(), sizes.agents);
  check_sizes(op, "weight", weight, expected, sizes.own_weights ? "[A, H, F]" : "[H, F]");
  expected.pop_back();
  check_sizes(op, "bias", bias, expected, sizes.own_weights ? "[A, H]" : "[H]");
  check_sizes(op, "query", query, expected, sizes.own_weights ? "[A, H]" : "[H]");
  return sizes;
}

// The dtype that sums are kept in.
inline ScalarType accumulated(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

// Arguments, contiguous.
struct EncodeTensors {
  Tensor context, weight, bias, query;
  std::optional<Tensor> index;

  EncodeTensors(const Tensor& context_, const Tensor& weight_, const Tensor& bias_,
                const Tensor& query_, const std::optional<Tensor>& index_)
      : context(as_contiguous(context_)),
        weight(as_contiguous(weight_)),
        bias(as_contiguous(bias_)),
        query(as_contiguous(query_)) {
    if (index_) index = as_contiguous(*index_);
  }
};

// Where rows of the context are found: in order, or through an index that is judged here.
inline void check_rows(const int64_t* index, int64_t count, int64_t rows) {
  int64_t least = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) {
    least = index[i] < least ? index[i] : least;
    most = index[i] > most ? index[i] : most;
  }
  MG2L_CHECK(count == 0 || (least >= 0 && most < rows),
             "encode_context: index must be in [0, R) = [0, ", rows, "), got ",
             least < 0 ? least : most);
}

}  // namespace mg2l
