// What the CPU and the CUDA implementation of `pairwise_lse` share: checking the arguments. See
// mg2l/ops/pairwise_lse.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

struct PairSizes {
  int64_t groups, queries, keys, width;
};

inline PairSizes check_pairwise_lse(const Tensor& queries, const Tensor& keys,
                                    const Tensor& positive, double scale,
                                    const std::optional<Tensor>& std,
                                    const std::optional<Tensor>& query_labels,
                                    const std::optional<Tensor>& key_labels,
                                    const std::optional<Tensor>& mask, std::optional<double> clip) {
  constexpr const char* op = "pairwise_lse";
  check_floating(op, "queries", queries);
  MG2L_CHECK(queries.dim() == 3, op, ": queries must have shape [G, B, D], got ",
             to_text(sizes_of(queries)));
  const PairSizes sizes{queries.size(0), queries.size(1), keys.dim() == 3 ? keys.size(1) : 0,
                        queries.size(2)};
  check_dtype(op, "keys", keys, queries.scalar_type());
  check_same_device(op, "keys", keys, "queries", queries);
  MG2L_CHECK(keys.dim() == 3 && keys.size(0) == sizes.groups && keys.size(2) == sizes.width, op,
             ": keys must have shape [G, M, D] with G = ", sizes.groups, " and D = ", sizes.width,
             ", got ", to_text(sizes_of(keys)));
  MG2L_CHECK(sizes.keys >= 1, op, ": there must be at least 1 key, got 0");
  check_dtype(op, "positive", positive, ScalarType::Long);
  check_same_device(op, "positive", positive, "queries", queries);
  check_sizes(op, "positive", positive, {sizes.groups, sizes.queries}, "[G, B]");
  if (std) {
    check_dtype(op, "std", *std, queries.scalar_type());
    check_same_device(op, "std", *std, "queries", queries);
    check_sizes(op, "std", *std, sizes_of(keys), "of keys");
  }
  MG2L_CHECK(query_labels.has_value() == key_labels.has_value(), op,
             ": query_labels and key_labels must be given together, got only ",
             query_labels ? "query_labels" : "key_labels");
  if (query_labels) {
    check_dtype(op, "query_labels", *query_labels, ScalarType::Long);
    check_dtype(op, "key_labels", *key_labels, ScalarType::Long);
    check_same_device(op, "query_labels", *query_labels, "queries", queries);
    check_same_device(op, "key_labels", *key_labels, "queries", queries);
    check_sizes(op, "query_labels", *query_labels, {sizes.groups, sizes.queries}, "[G, B]");
    check_sizes(op, "key_labels", *key_labels, {sizes.groups, sizes.keys}, "[G, M]");
  }
  if (mask) {
    check_dtype(op, "mask", *mask, ScalarType::Bool);
    check_same_device(op, "mask", *mask, "queries", queries);
    check_sizes(op, "mask", *mask, {sizes.groups, sizes.queries, sizes.keys}, "[G, B, M]");
  }
  MG2L_CHECK(std::isfinite(scale), op, ": scale must be finite, got ", scale);
  MG2L_CHECK(!clip || *clip > 0, op, ": clip must be positive, got ", clip.value_or(0));
  return sizes;
}

// Also what the forward pass left for the backward pass, and the gradients of its results.
inline PairSizes check_pairwise_lse_backward(
    const Tensor& grad_lse, const Tensor& grad_lse_negatives, const Tensor& grad_mean,
    const Tensor& grad_positive, const Tensor& queries, const Tensor& keys, const Tensor& positive,
    double scale, const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip, const Tensor& lse, const Tensor& lse_negatives,
    const Tensor& negatives) {
  constexpr const char* op = "pairwise_lse_backward";
  const PairSizes sizes =
      check_pairwise_lse(queries, keys, positive, scale, std, query_labels, key_labels, mask, clip);
  const Sizes shape{sizes.groups, sizes.queries};
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_like(op, name, tensor, "queries", queries, shape, "[G, B]");
  };
  check("grad_lse", grad_lse);
  check("grad_lse_negatives", grad_lse_negatives);
  check("grad_mean", grad_mean);
  check("grad_positive", grad_positive);
  check("lse", lse);
  check("lse_negatives", lse_negatives);
  check_like(op, "negatives", negatives, "queries", queries, shape, "[G, B]", ScalarType::Long);
  return sizes;
}

// On the CPU, where looking costs nothing: every positive names a key.
inline void check_positive(const PairSizes& sizes, const Tensor& positive) {
  const int64_t* at = data<int64_t>(positive);
  for (int64_t i = 0; i < sizes.groups * sizes.queries; ++i) {
    MG2L_CHECK(at[i] >= 0 && at[i] < sizes.keys,
               "pairwise_lse: positive must lie in [0, M) with M = ", sizes.keys, ", got ", at[i]);
  }
}

// Contiguous views of the arguments.
struct PairTensors {
  Tensor queries, keys, positive;
  std::optional<Tensor> std, query_labels, key_labels, mask;

  PairTensors(const Tensor& queries_, const Tensor& keys_, const Tensor& positive_,
              const std::optional<Tensor>& std_, const std::optional<Tensor>& query_labels_,
              const std::optional<Tensor>& key_labels_, const std::optional<Tensor>& mask_)
      : queries(as_contiguous(queries_)),
        keys(as_contiguous(keys_)),
        positive(as_contiguous(positive_)) {
    if (std_) std = as_contiguous(*std_);
    if (query_labels_) {
      query_labels = as_contiguous(*query_labels_);
      key_labels = as_contiguous(*key_labels_);
    }
    if (mask_) mask = as_contiguous(*mask_);
  }
};

struct PairOutputs {
  Tensor lse, lse_negatives, mean, positive_score, negatives, rank;
};

inline PairOutputs pair_outputs(const Tensor& queries, const PairSizes& sizes) {
  const Sizes shape{sizes.groups, sizes.queries};
  const auto score = [&] { return allocate(queries, shape); };
  const auto count = [&] { return allocate(queries, shape, ScalarType::Long); };
  return {score(), score(), score(), score(), count(), count()};
}

// Results of `pairwise_lse_backward`, zeros where there are no queries; std holds nothing where
// there is none.
struct PairBackwardOutputs {
  Tensor queries, keys, std;

  PairBackwardOutputs(const Tensor& queries_, const Tensor& keys_, bool has_std)
      : queries(allocate_like(queries_)),
        keys(allocate_like(keys_)),
        std(allocate(keys_, has_std ? sizes_of(keys_) : Sizes{0})) {
    if (queries_.size(1) > 0) return;
    torch::stable::zero_(keys);
    torch::stable::zero_(std);
  }
};

}  // namespace mg2l
