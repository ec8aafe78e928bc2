// Launchers of `gae` and `gae_backward`.
#include "gae.cuh"
#include "launchers.h"

namespace mg2l {
namespace {

// From this many columns on they alone fill a GPU, and reading the inputs twice would only cost.
constexpr int64_t kManyColumns = 8192;
// Below this many steps there is nothing to cut.
constexpr int64_t kManySteps = 4 * kChunks;

bool by_columns(int64_t steps, int64_t columns) {
  return columns >= kManyColumns || steps < kManySteps;
}

dim3 blocks(int64_t columns, int per_block) {
  return dim3(static_cast<unsigned>((columns + per_block - 1) / per_block));
}

template <typename scalar_t>
int launch_gae(const GaeArgs<scalar_t>& args, void* stream) {
  if (args.columns == 0) return cudaSuccess;
  if (by_columns(args.steps, args.columns)) {
    MG2L_LAUNCH(gae_columns_kernel<scalar_t>, blocks(args.columns, kColumnThreads),
                dim3(kColumnThreads), stream, args);
  } else {
    MG2L_LAUNCH(gae_chunked_kernel<scalar_t>, blocks(args.columns, kChunkColumns),
                dim3(kChunkColumns, kChunks), stream, args);
  }
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_gae_backward(const GaeBackwardArgs<scalar_t>& args, void* stream) {
  if (args.columns == 0) return cudaSuccess;
  if (by_columns(args.steps, args.columns)) {
    MG2L_LAUNCH(gae_backward_columns_kernel<scalar_t>, blocks(args.columns, kColumnThreads),
                dim3(kColumnThreads), stream, args);
  } else {
    MG2L_LAUNCH(gae_backward_chunked_kernel<scalar_t>, blocks(args.columns, kChunkColumns),
                dim3(kChunkColumns, kChunks), stream, args);
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace mg2l

const char* mg2l_error_string(int status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

#define MG2L_GAE_LAUNCHERS(scalar_t)                                                              \
  int mg2l_gae_##scalar_t(                                                                        \
      int64_t steps, int64_t columns, double gamma, double gae_lambda, const scalar_t* rewards,   \
      const scalar_t* values, const uint8_t* terminated, const uint8_t* truncated,                \
      const scalar_t* final_values, const scalar_t* value_mean, const scalar_t* value_std,        \
      scalar_t* advantages, scalar_t* returns, double* moments, void* stream) {                   \
    return mg2l::launch_gae<scalar_t>(                                                            \
        {steps, columns, static_cast<scalar_t>(gamma), static_cast<scalar_t>(gamma * gae_lambda), \
         rewards, values, terminated, truncated, final_values, value_mean, value_std, advantages, \
         returns, moments},                                                                       \
        stream);                                                                                  \
  }                                                                                               \
  int mg2l_gae_backward_##scalar_t(                                                               \
      int64_t steps, int64_t columns, double gamma, double gae_lambda,                            \
      const scalar_t* grad_advantages, const scalar_t* grad_returns, const uint8_t* terminated,   \
      const uint8_t* truncated, scalar_t* grad_rewards, scalar_t* grad_values,                    \
      scalar_t* grad_final_values, void* stream) {                                                \
    return mg2l::launch_gae_backward<scalar_t>(                                                   \
        {steps, columns, static_cast<scalar_t>(gamma), static_cast<scalar_t>(gamma * gae_lambda), \
         grad_advantages, grad_returns, terminated, truncated, grad_rewards, grad_values,         \
         grad_final_values},                                                                      \
        stream);                                                                                  \
  }

MG2L_GAE_LAUNCHERS(float)
MG2L_GAE_LAUNCHERS(double)
