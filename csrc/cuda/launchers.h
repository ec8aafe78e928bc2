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
