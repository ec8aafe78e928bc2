// Launchers of `pia_pool` and `pia_pool_backward`.
#include "pia_pool.cuh"

namespace mg2l {
namespace {

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename scalar_t>
int launch_pia_pool(const PoolForwardArgs<scalar_t>& args, void* stream) {
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t rows = in.outer * in.inner * in.heads;
  if (rows == 0 || in.width == 0) return cudaSuccess;
  MG2L_LAUNCH(pia_pool_kernel<scalar_t>, dim3(static_cast<unsigned>(rows)), dim3(kWarp, kPoolWarps),
              stream, args);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pia_pool_backward(const PoolBackwardArgs<scalar_t>& args, void* stream) {
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t sets = in.outer * in.inner, query = in.heads * in.width;
  if (query == 0) return cudaSuccess;
  if (sets > 0) {
    MG2L_LAUNCH(pia_pool_backward_logits_kernel<scalar_t>,
                dim3(static_cast<unsigned>(sets * in.heads)), dim3(kWarp, kPoolWarps), stream,
                args);
    MG2L_LAUNCH(pia_pool_backward_inputs_kernel<scalar_t>,
                dim3(blocks(sets * in.length * in.width, kPoolThreads)), dim3(kPoolThreads), stream,
                args);
  }
  MG2L_LAUNCH(pia_pool_backward_query_kernel<scalar_t>,
              dim3(blocks(in.width, kWarp), static_cast<unsigned>(in.heads), kQueryParts),
              dim3(kWarp, kQueryRows), stream, args);
  MG2L_LAUNCH(pia_pool_backward_combine_kernel<scalar_t>, dim3(blocks(query, kPoolThreads)),
              dim3(kPoolThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

int64_t mg2l_pia_pool_parts() { return kQueryParts; }

int mg2l_pia_pool_float(const PoolForwardArgs<float>* args, void* stream) {
  return launch_pia_pool(*args, stream);
}
int mg2l_pia_pool_double(const PoolForwardArgs<double>* args, void* stream) {
  return launch_pia_pool(*args, stream);
}
int mg2l_pia_pool_backward_float(const PoolBackwardArgs<float>* args, void* stream) {
  return launch_pia_pool_backward(*args, stream);
}
int mg2l_pia_pool_backward_double(const PoolBackwardArgs<double>* args, void* stream) {
  return launch_pia_pool_backward(*args, stream);
}

}  // namespace mg2l
