// Schemas of every operator of the dispatcher namespace `mg2l`, one each. `(a!)` marks only what an
// operator writes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mg2l, m) {
  m.def(
      "gae(Tensor rewards, Tensor values, Tensor terminated, Tensor truncated, float gamma,"
      " float gae_lambda, Tensor? final_values=None, Tensor? value_mean=None,"
      " Tensor? value_std=None) -> (Tensor advantages, Tensor returns, Tensor moments)");
  m.def(
      "gae_backward(Tensor grad_advantages, Tensor grad_returns, Tensor terminated,"
      " Tensor truncated, float gamma, float gae_lambda, bool has_final_values)"
      " -> (Tensor grad_rewards, Tensor grad_values, Tensor grad_final_values)");
  // No defaults: arguments that equal them would be dropped before autograd sees the lists.
  m.def(
      "encode_context(Tensor context, Tensor[] weights, Tensor[] biases, Tensor query,"
      " Tensor? index, bool tanh_gelu, bool bfloat16, bool return_weights)"
      " -> (Tensor pooled, Tensor lse, Tensor pooling)");
  m.def(
      "encode_context_backward(Tensor grad_pooled, Tensor context, Tensor[] weights, Tensor[] "
      "biases,"
      " Tensor query, Tensor? index, bool tanh_gelu, bool bfloat16, Tensor pooled, Tensor lse,"
      " bool want_context)"
      " -> (Tensor grad_context, Tensor[] grad_weights, Tensor[] grad_biases, Tensor grad_query)");
  m.def(
      "pia_pool(Tensor x, Tensor query, Tensor? mask=None, bool return_weights=False)"
      " -> (Tensor pooled, Tensor lse, Tensor weights)");
  m.def(
      "pia_pool_backward(Tensor grad, Tensor x, Tensor query, Tensor? mask, Tensor pooled,"
      " Tensor lse) -> (Tensor grad_x, Tensor grad_query)");
  m.def(
      "pairwise_lse(Tensor queries, Tensor keys, Tensor positive, float scale, Tensor? std,"
      " Tensor? query_labels, Tensor? key_labels, Tensor? mask, float? clip)"
      " -> (Tensor lse, Tensor lse_negatives, Tensor mean, Tensor positive_score,"
      " Tensor negatives, Tensor rank)");
  m.def(
      "pairwise_lse_backward(Tensor grad_lse, Tensor grad_lse_negatives, Tensor grad_mean,"
      " Tensor grad_positive, Tensor queries, Tensor keys, Tensor positive, float scale,"
      " Tensor? std, Tensor? query_labels, Tensor? key_labels, Tensor? mask, float? clip,"
      " Tensor lse, Tensor lse_negatives, Tensor negatives)"
      " -> (Tensor grad_queries, Tensor grad_keys, Tensor grad_std)");
  m.def(
      "stacked_mlp(Tensor x, Tensor[] weights, Tensor[] biases, bool relu, bool plain_last,"
      " bool bfloat16, bool keep) -> (Tensor y, Tensor kept, Tensor moments)");
  m.def(
      "stacked_mlp_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, bool relu,"
      " bool plain_last, bool bfloat16, Tensor y, Tensor kept, Tensor moments, bool want_x)"
      " -> (Tensor grad_x, Tensor[] grad_weights, Tensor[] grad_biases)");
  m.def("film(Tensor features, Tensor generated, Tensor? index) -> Tensor");
  m.def(
      "film_backward(Tensor grad, Tensor features, Tensor generated, Tensor? index)"
      " -> (Tensor grad_features, Tensor grad_generated)");
  m.def(
      "surrogate(Tensor log_probs, Tensor before, Tensor advantages, Tensor? weights,"
      " float weight, float clip) -> (Tensor loss, Tensor kl, Tensor clip_fraction, Tensor slope)");
  m.def(
      "gaussian_surrogate(Tensor mean, Tensor log_std, Tensor action, Tensor before,"
      " Tensor advantages, Tensor? weights, float weight, float clip, float entropy_coef,"
      " Tensor? own) -> (Tensor loss, Tensor surrogate, Tensor entropy, Tensor kl,"
      " Tensor clip_fraction, Tensor mean_slope, Tensor log_std_slope)");
  m.def(
      "value_loss(Tensor prediction, Tensor old, Tensor target, Tensor? weights, float weight,"
      " float? clip, float? delta) -> (Tensor loss, Tensor slope)");
  m.def(
      "contrast(Tensor raw, Tensor keys, Tensor positive, float temperature, float kl_weight,"
      " float std_floor) -> (Tensor loss, Tensor bound, Tensor accuracy, Tensor kl,"
      " Tensor raw_slope, Tensor key_slope)");
  m.def(
      "gelu_mlp(Tensor x, Tensor[] weights, Tensor[] biases, bool keep)"
      " -> (Tensor y, Tensor kept)");
  m.def(
      "gelu_mlp_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, Tensor kept,"
      " bool want_x) -> (Tensor grad_x, Tensor[] grad_weights, Tensor[] grad_biases)");
  m.def(
      "innovation_moments(Tensor series, Tensor transitions, Tensor coefficients,"
      " int observation, Tensor? places) -> Tensor moments");
  m.def(
      "innovation_moments_backward(Tensor grad, Tensor series, Tensor transitions,"
      " Tensor coefficients, int observation, Tensor? places)"
      " -> (Tensor grad_series, Tensor grad_coefficients)");
  m.def("clip_norms(Tensor(a!)[] gradients, float limit, bool per_group) -> Tensor norms");
}
