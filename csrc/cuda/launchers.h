// The C boundary between kernels (nvcc) and their binding to torch (host compiler): no CUDA and no
// torch type crosses it. `stream` is a cudaStream_t, the result a cudaError_t. Pointers named
// optional may be null. Shapes and meanings are those of mg2l/ops.
#pragma once

#include <cstdint>

#ifdef MG2L_CUDA_HOST
#define MG2L_API extern "C" __attribute__((visibility("default")))
#else
#define MG2L_API extern "C" __attribute__((visibility("hidden")))
#endif

MG2L_API const char* mg2l_error_string(int status);

MG2L_API int mg2l_gae_float(int64_t steps, int64_t columns, double gamma, double gae_lambda,
                            const float* rewards, const float* values, const uint8_t* terminated,
                            const uint8_t* truncated, const float* optional_final_values,
                            const float* optional_value_mean, const float* optional_value_std,
                            float* advantages, float* returns, double* moments, void* stream);
MG2L_API int mg2l_gae_double(int64_t steps, int64_t columns, double gamma, double gae_lambda,
                             const double* rewards, const double* values, const uint8_t* terminated,
                             const uint8_t* truncated, const double* optional_final_values,
                             const double* optional_value_mean, const double* optional_value_std,
                             double* advantages, double* returns, double* moments, void* stream);

MG2L_API int mg2l_gae_backward_float(int64_t steps, int64_t columns, double gamma,
                                     double gae_lambda, const float* grad_advantages,
                                     const float* grad_returns, const uint8_t* terminated,
                                     const uint8_t* truncated, float* grad_rewards,
                                     float* grad_values, float* optional_grad_final_values,
                                     void* stream);
MG2L_API int mg2l_gae_backward_double(int64_t steps, int64_t columns, double gamma,
                                      double gae_lambda, const double* grad_advantages,
                                      const double* grad_returns, const uint8_t* terminated,
                                      const uint8_t* truncated, double* grad_rewards,
                                      double* grad_values, double* optional_grad_final_values,
                                      void* stream);

// Scratch: weights and grad_logits are [outer, inner, heads, T], partial [parts, heads, D].
MG2L_API int64_t mg2l_pia_pool_parts();
MG2L_API int mg2l_pia_pool_float(int64_t outer, int64_t length, int64_t inner, int64_t width,
                                 int64_t heads, const float* x, const float* query,
                                 const uint8_t* optional_mask, float* pooled, float* lse,
                                 float* weights, void* stream);
MG2L_API int mg2l_pia_pool_double(int64_t outer, int64_t length, int64_t inner, int64_t width,
                                  int64_t heads, const double* x, const double* query,
                                  const uint8_t* optional_mask, double* pooled, double* lse,
                                  double* weights, void* stream);
MG2L_API int mg2l_pia_pool_backward_float(int64_t outer, int64_t length, int64_t inner,
                                          int64_t width, int64_t heads, const float* grad,
                                          const float* x, const float* query,
                                          const uint8_t* optional_mask, const float* pooled,
                                          const float* lse, float* weights, float* grad_logits,
                                          float* partial, float* grad_x, float* grad_query,
                                          void* stream);
MG2L_API int mg2l_pia_pool_backward_double(int64_t outer, int64_t length, int64_t inner,
                                           int64_t width, int64_t heads, const double* grad,
                                           const double* x, const double* query,
                                           const uint8_t* optional_mask, const double* pooled,
                                           const double* lse, double* weights, double* grad_logits,
                                           double* partial, double* grad_x, double* grad_query,
                                           void* stream);

// `clip` is 0 for none; offsets are scratch, [groups, keys], wanted with std.
MG2L_API int mg2l_pairwise_lse_float(
    int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,
    const float* query, const float* key, const float* optional_std, const int64_t* positive,
    const int64_t* optional_query_labels, const int64_t* optional_key_labels,
    const uint8_t* optional_mask, float* optional_offsets, float* lse, float* lse_negatives,
    float* mean, float* positive_score, int64_t* negatives, int64_t* rank, void* stream);
MG2L_API int mg2l_pairwise_lse_backward_float(
    int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,
    const float* query, const float* key, const float* optional_std, const int64_t* positive,
    const int64_t* optional_query_labels, const int64_t* optional_key_labels,
    const uint8_t* optional_mask, float* optional_offsets, const float* lse,
    const float* lse_negatives, const int64_t* negatives, const float* to_lse,
    const float* to_negatives, const float* to_mean, const float* to_positive, float* grad_query,
    float* grad_key, float* optional_grad_std, void* stream);
MG2L_API int mg2l_pairwise_lse_double(
    int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,
    const double* query, const double* key, const double* optional_std, const int64_t* positive,
    const int64_t* optional_query_labels, const int64_t* optional_key_labels,
    const uint8_t* optional_mask, double* optional_offsets, double* lse, double* lse_negatives,
    double* mean, double* positive_score, int64_t* negatives, int64_t* rank, void* stream);
MG2L_API int mg2l_pairwise_lse_backward_double(
    int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,
    const double* query, const double* key, const double* optional_std, const int64_t* positive,
    const int64_t* optional_query_labels, const int64_t* optional_key_labels,
    const uint8_t* optional_mask, double* optional_offsets, const double* lse,
    const double* lse_negatives, const int64_t* negatives, const double* to_lse,
    const double* to_negatives, const double* to_mean, const double* to_positive,
    double* grad_query, double* grad_key, double* optional_grad_std, void* stream);

// `units` lies in the host's memory: the width of every hidden layer. `packed` holds the layers as
// `pack` lays them out, one after the other, then the query, a layer without inputs. Scratch:
// partial is [contexts * agents * splits, padded H + 2], and [sets, parts, size] in the backward
// pass, which `unpack` adds up for the layer that begins at `offset`. bfloat16 crosses as uint16_t.
MG2L_API int mg2l_encode_context_float(int64_t contexts, int64_t transitions, int64_t agents,
                                       int64_t features, int64_t rows, int64_t layers,
                                       const int64_t* units, int64_t own_weights, int64_t tanh_gelu,
                                       int64_t splits, const float* context,
                                       const int64_t* optional_index, const float* packed,
                                       float* partial, float* pooled, float* lse,
                                       float* optional_weights, void* stream);
MG2L_API int mg2l_encode_context_backward_float(
    int64_t contexts, int64_t transitions, int64_t agents, int64_t features, int64_t rows,
    int64_t layers, const int64_t* units, int64_t own_weights, int64_t tanh_gelu, int64_t parts,
    const float* grad_pooled, const float* context, const int64_t* optional_index,
    const float* packed, const float* pooled, const float* lse, float* partial,
    float* optional_grad_context, void* stream);
MG2L_API int mg2l_encode_context_pack_float(int64_t sets, int64_t units, int64_t inputs,
                                            const float* optional_weight, const float* bias,
                                            float* packed, void* stream);
MG2L_API int mg2l_encode_context_unpack_float(int64_t parts, int64_t sets, int64_t units,
                                              int64_t inputs, int64_t size, int64_t offset,
                                              const float* partial, float* optional_grad_weight,
                                              float* grad_bias, void* stream);
MG2L_API int mg2l_encode_context_double(int64_t contexts, int64_t transitions, int64_t agents,
                                        int64_t features, int64_t rows, int64_t layers,
                                        const int64_t* units, int64_t own_weights,
                                        int64_t tanh_gelu, int64_t splits, const double* context,
                                        const int64_t* optional_index, const double* packed,
                                        double* partial, double* pooled, double* lse,
                                        double* optional_weights, void* stream);
MG2L_API int mg2l_encode_context_backward_double(
    int64_t contexts, int64_t transitions, int64_t agents, int64_t features, int64_t rows,
    int64_t layers, const int64_t* units, int64_t own_weights, int64_t tanh_gelu, int64_t parts,
    const double* grad_pooled, const double* context, const int64_t* optional_index,
    const double* packed, const double* pooled, const double* lse, double* partial,
    double* optional_grad_context, void* stream);
MG2L_API int mg2l_encode_context_pack_double(int64_t sets, int64_t units, int64_t inputs,
                                             const double* optional_weight, const double* bias,
                                             double* packed, void* stream);
MG2L_API int mg2l_encode_context_unpack_double(int64_t parts, int64_t sets, int64_t units,
                                               int64_t inputs, int64_t size, int64_t offset,
                                               const double* partial, double* optional_grad_weight,
                                               double* grad_bias, void* stream);
MG2L_API int mg2l_encode_context_bfloat16(int64_t contexts, int64_t transitions, int64_t agents,
                                          int64_t features, int64_t rows, int64_t layers,
                                          const int64_t* units, int64_t own_weights,
                                          int64_t tanh_gelu, int64_t splits,
                                          const uint16_t* context, const int64_t* optional_index,
                                          const float* packed, float* partial, float* pooled,
                                          float* lse, uint16_t* optional_weights, void* stream);
MG2L_API int mg2l_encode_context_backward_bfloat16(
    int64_t contexts, int64_t transitions, int64_t agents, int64_t features, int64_t rows,
    int64_t layers, const int64_t* units, int64_t own_weights, int64_t tanh_gelu, int64_t parts,
    const float* grad_pooled, const uint16_t* context, const int64_t* optional_index,
    const float* packed, const float* pooled, const float* lse, float* partial,
    uint16_t* optional_grad_context, void* stream);
MG2L_API int mg2l_encode_context_pack_bfloat16(int64_t sets, int64_t units, int64_t inputs,
                                               const uint16_t* optional_weight,
                                               const uint16_t* bias, float* packed, void* stream);
MG2L_API int mg2l_encode_context_unpack_bfloat16(int64_t parts, int64_t sets, int64_t units,
                                                 int64_t inputs, int64_t size, int64_t offset,
                                                 const float* partial,
                                                 uint16_t* optional_grad_weight,
                                                 uint16_t* grad_bias, void* stream);
