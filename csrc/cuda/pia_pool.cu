// Launchers of `pia_pool` and `pia_pool_backward`.
#include "launchers.h"
#include "pia_pool.cuh"

namespace mg2l {
namespace {

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename scalar_t>
int launch_pia_pool(const PoolArgs<scalar_t>& args, void* stream) {
  const int64_t rows = args.outer * args.inner * args.heads;
  if (rows == 0 || args.width == 0) return cudaSuccess;
  MG2L_LAUNCH(pia_pool_kernel<scalar_t>, dim3(static_cast<unsigned>(rows)), dim3(kWarp, kPoolWarps),
              stream, args);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pia_pool_backward(const PoolBackwardArgs<scalar_t>& args, void* stream) {
  const PoolArgs<scalar_t>& a = args.forward;
  const int64_t sets = a.outer * a.inner, query = a.heads * a.width;
  if (query == 0) return cudaSuccess;
  if (sets > 0) {
    MG2L_LAUNCH(pia_pool_backward_logits_kernel<scalar_t>,
                dim3(static_cast<unsigned>(sets * a.heads)), dim3(kWarp, kPoolWarps), stream, args);
    MG2L_LAUNCH(pia_pool_backward_inputs_kernel<scalar_t>,
                dim3(blocks(sets * a.length * a.width, kPoolThreads)), dim3(kPoolThreads), stream,
                args);
  }
  MG2L_LAUNCH(pia_pool_backward_query_kernel<scalar_t>,
              dim3(blocks(a.width, kWarp), static_cast<unsigned>(a.heads), kQueryParts),
              dim3(kWarp, kQueryRows), stream, args);
  MG2L_LAUNCH(pia_pool_backward_combine_kernel<scalar_t>, dim3(blocks(query, kPoolThreads)),
              dim3(kPoolThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace
}  // namespace mg2l

int64_t mg2l_pia_pool_parts() { return mg2l::kQueryParts; }

#define MG2L_PIA_POOL_LAUNCHERS(scalar_t)                                                    \
  int mg2l_pia_pool_##scalar_t(int64_t outer, int64_t length, int64_t inner, int64_t width,  \
                               int64_t heads, const scalar_t* x, const scalar_t* query,      \
                               const uint8_t* mask, scalar_t* pooled, scalar_t* lse,         \
                               scalar_t* weights, void* stream) {                            \
    return mg2l::launch_pia_pool<scalar_t>(                                                  \
        {outer, length, inner, width, heads, x, query, mask, pooled, lse, weights}, stream); \
  }                                                                                          \
  int mg2l_pia_pool_backward_##scalar_t(                                                     \
      int64_t outer, int64_t length, int64_t inner, int64_t width, int64_t heads,            \
      const scalar_t* grad, const scalar_t* x, const scalar_t* query, const uint8_t* mask,   \
      const scalar_t* pooled, const scalar_t* lse, scalar_t* weights, scalar_t* grad_logits, \
      scalar_t* partial, scalar_t* grad_x, scalar_t* grad_query, void* stream) {             \
    return mg2l::launch_pia_pool_backward<scalar_t>(                                         \
        {{outer, length, inner, width, heads, x, query, mask, const_cast<scalar_t*>(pooled), \
          const_cast<scalar_t*>(lse), weights},                                              \
         grad,                                                                               \
         grad_logits,                                                                        \
         partial,                                                                            \
         grad_x,                                                                             \
         grad_query},                                                                        \
        stream);                                                                             \
  }

MG2L_PIA_POOL_LAUNCHERS(float)
MG2L_PIA_POOL_LAUNCHERS(double)
