// Launchers of `pairwise_lse` and `pairwise_lse_backward`.
#include "pairwise_lse.cuh"

namespace mg2l {
namespace {

unsigned tiles(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename scalar_t>
void launch_offsets(const PairArgs<scalar_t>& in, void* stream) {
  if (in.std == nullptr) return;
  MG2L_LAUNCH(pair_offsets_kernel<scalar_t>, dim3(tiles(in.groups * in.keys, kOffsetThreads)),
              dim3(kOffsetThreads), stream, in);
}

template <typename scalar_t>
int launch_pairwise_lse(const PairForwardArgs<scalar_t>& args, void* stream) {
  const PairArgs<scalar_t>& in = args.in;
  if (in.groups == 0 || in.queries == 0) return cudaSuccess;
  launch_offsets(in, stream);
  const auto kernel = in.std == nullptr ? pairwise_lse_kernel<false, scalar_t>
                                        : pairwise_lse_kernel<true, scalar_t>;
  MG2L_LAUNCH(kernel, dim3(tiles(in.queries, kSide), static_cast<unsigned>(in.groups)),
              dim3(kSide, kPairWarps), stream, args);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pairwise_lse_backward(const PairBackwardArgs<scalar_t>& args, void* stream) {
  const PairArgs<scalar_t>& in = args.in;
  if (in.groups == 0 || in.queries == 0) return cudaSuccess;
  launch_offsets(in, stream);
  const auto groups = static_cast<unsigned>(in.groups);
  const bool gaussian = in.std != nullptr;
  const auto queries_kernel = gaussian ? pairwise_lse_backward_queries_kernel<true, scalar_t>
                                       : pairwise_lse_backward_queries_kernel<false, scalar_t>;
  const auto keys_kernel = gaussian ? pairwise_lse_backward_keys_kernel<true, scalar_t>
                                    : pairwise_lse_backward_keys_kernel<false, scalar_t>;
  MG2L_LAUNCH(queries_kernel, dim3(tiles(in.queries, kSide), groups), dim3(kSide, kPairWarps),
              stream, args);
  MG2L_LAUNCH(keys_kernel, dim3(tiles(in.keys, kSide), groups), dim3(kSide, kPairWarps), stream,
              args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_pairwise_lse_float(const PairForwardArgs<float>* args, void* stream) {
  return launch_pairwise_lse(*args, stream);
}
int mg2l_pairwise_lse_double(const PairForwardArgs<double>* args, void* stream) {
  return launch_pairwise_lse(*args, stream);
}
int mg2l_pairwise_lse_backward_float(const PairBackwardArgs<float>* args, void* stream) {
  return launch_pairwise_lse_backward(*args, stream);
}
int mg2l_pairwise_lse_backward_double(const PairBackwardArgs<double>* args, void* stream) {
  return launch_pairwise_lse_backward(*args, stream);
}

}  // namespace mg2l
