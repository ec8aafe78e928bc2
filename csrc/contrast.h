// What the CPU and the CUDA implementation of `contrast` share: checking the arguments and laying
// them out. See mg2l/ops/contrast.py for what the operator computes.
#pragma once

#include <cmath>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

constexpr double kSmallestNorm = 1e-12;   // that vectors are divided by at least, as in torch
constexpr double kSoftplusLinear = 20.0;  // from here on softplus(x) is x, as in torch

inline void check_contrast(const Tensor& raw, const Tensor& keys, const Tensor& positive,
                           double temperature, double kl_weight, double std_floor) {
  constexpr const char* op = "contrast";
  check_floating(op, "raw", raw);
  MG2L_CHECK(raw.dim() == 3 && raw.size(2) % 2 == 0 && raw.size(2) > 0, op,
             ": raw must have shape [G, B, 2 D] with D >= 1, got ", to_text(sizes_of(raw)));
  MG2L_CHECK(keys.dim() == 2 && keys.size(0) > 0, op,
             ": keys must have shape [K, D] with K >= 1, got ", to_text(sizes_of(keys)));
  check_like(op, "keys", keys, "raw", raw, {keys.size(0), raw.size(2) / 2}, "[K, D]");
  check_like(op, "positive", positive, "raw", raw, {raw.size(1)}, "[B]", ScalarType::Long);
  MG2L_CHECK(temperature > 0, op, ": temperature must be positive, got ", temperature);
  MG2L_CHECK(kl_weight >= 0, op, ": kl_weight must be at least 0, got ", kl_weight);
  MG2L_CHECK(std_floor > 0, op, ": std_floor must be positive, got ", std_floor);
}

// On the CPU, where looking costs nothing: every positive names a key.
inline void check_names_keys(const Tensor& positive, int64_t keys) {
  const int64_t* at = data<int64_t>(positive);
  for (int64_t i = 0; i < positive.numel(); ++i) {
    MG2L_CHECK(at[i] >= 0 && at[i] < keys, "contrast: positive must lie in [0, K) with K = ", keys,
               ", got ", at[i]);
  }
}

// Contiguous arguments, and the results.
struct ContrastTensors {
  int64_t groups, rows, keys_count, width;
  Tensor raw, keys, positive;
  Tensor loss, bound, accuracy, kl, raw_slope, key_slope;

  ContrastTensors(const Tensor& raw_, const Tensor& keys_, const Tensor& positive_)
      : groups(raw_.size(0)),
        rows(raw_.size(1)),
        keys_count(keys_.size(0)),
        width(keys_.size(1)),
        raw(as_contiguous(raw_)),
        keys(as_contiguous(keys_)),
        positive(as_contiguous(positive_)),
        loss(allocate(raw, {groups})),
        bound(allocate(raw, {groups})),
        accuracy(allocate(raw, {groups})),
        kl(allocate(raw, {groups})),
        raw_slope(allocate_like(raw)),
        key_slope(allocate(raw, {groups, keys_count, width})) {}
};

}  // namespace mg2l
