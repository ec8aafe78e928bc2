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
  const int64_t splits = pool_splits(rows, in.length);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(splits));
  const auto kernel =
      splits > 1 ? pia_pool_kernel<true, scalar_t> : pia_pool_kernel<false, scalar_t>;
  MG2L_LAUNCH(kernel, grid, dim3(kWarp, kPoolWarps), stream, args);
  if (splits > 1) {
    MG2L_LAUNCH(pia_pool_finish_kernel<scalar_t>, dim3(static_cast<unsigned>(rows)),
                dim3(kPoolThreads), stream, args, splits);
  }
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pia_pool_backward(const PoolBackwardArgs<scalar_t>& args, void* stream) {
  const PoolArgs<scalar_t>& in = args.in;
  const int64_t sets = in.outer * in.inner, query = in.heads * in.width;
  if (query == 0) return cudaSuccess;
  if (sets > 0) {
    const int64_t rows = sets * in.heads, splits = pool_splits(rows, in.length);
    MG2L_LAUNCH(pia_pool_backward_logits_kernel<scalar_t>,
                dim3(static_cast<unsigned>(rows), static_cast<unsigned>(splits)),
                dim3(kWarp, kPoolWarps), stream, args);
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
