// Launchers of `pairwise_lse` and `pairwise_lse_backward`.
#include "pairwise_lse.cuh"
#include "pairwise_lse_backward.cuh"

namespace mg2l {
namespace {

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename scalar_t>
void launch_offsets(const PairArgs<scalar_t>& in, void* stream) {
  if (in.std == nullptr) return;
  MG2L_LAUNCH(pair_offsets_kernel<scalar_t>, dim3(blocks(in.groups * in.keys, kOffsetThreads)),
              dim3(kOffsetThreads), stream, in);
}

template <typename scalar_t>
int launch_pairwise_lse(const PairForwardArgs<scalar_t>& args, void* stream) {
  const PairArgs<scalar_t>& in = args.in;
  if (in.groups == 0 || in.queries == 0) return cudaSuccess;
  launch_offsets(in, stream);
  const auto kernel = in.products != nullptr ? pairwise_lse_kernel<Scores::kProducts, scalar_t>
                      : in.std != nullptr    ? pairwise_lse_kernel<Scores::kGaussian, scalar_t>
                                             : pairwise_lse_kernel<Scores::kDot, scalar_t>;
  const dim3 grid(blocks(in.queries, kSide), static_cast<unsigned>(in.groups),
                  static_cast<unsigned>(args.splits));
  MG2L_LAUNCH(kernel, grid, dim3(kSide, kPairWarps), stream, args);
  if (args.splits > 1) {
    MG2L_LAUNCH(pairwise_lse_finish_kernel<scalar_t>,
                dim3(blocks(in.groups * in.queries, kPairWarps)), dim3(kSide, kPairWarps), stream,
                args);
  }
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pairwise_lse_backward(const PairBackwardArgs<scalar_t>& args, void* stream) {
  const PairArgs<scalar_t>& in = args.of.in;
  if (in.groups == 0 || in.queries == 0) return cudaSuccess;
  launch_offsets(in, stream);
  const auto kernel = in.std != nullptr ? pairwise_lse_backward_kernel<true, scalar_t>
                                        : pairwise_lse_backward_kernel<false, scalar_t>;
  const dim3 grid(blocks(in.queries > in.keys ? in.queries : in.keys, kSide),
                  static_cast<unsigned>(in.groups),
                  static_cast<unsigned>(args.query_splits + args.key_splits));
  MG2L_LAUNCH(kernel, grid, dim3(kSide, kPairWarps), stream, args);
  const int64_t numbers = in.groups * in.width * (in.queries + 2 * in.keys);
  if (numbers > 0 && (args.query_splits > 1 || args.key_splits > 1)) {
    MG2L_LAUNCH(pairwise_lse_backward_combine_kernel<scalar_t>,
                dim3(blocks(numbers, kOffsetThreads)), dim3(kOffsetThreads), stream, args);
  }
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_products(const PairProductsArgs<scalar_t>& args, void* stream) {
  const PairArgs<scalar_t>& in = args.of.in;
  MG2L_LAUNCH(pairwise_lse_products_kernel<scalar_t>,
              dim3(blocks(in.keys, kProductThreads), blocks(in.queries, kProductRows)),
              dim3(kProductThreads), stream, args);
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
int mg2l_pairwise_lse_products_float(const PairProductsArgs<float>* args, void* stream) {
  return launch_products(*args, stream);
}
int mg2l_pairwise_lse_products_double(const PairProductsArgs<double>* args, void* stream) {
  return launch_products(*args, stream);
}

}  // namespace mg2l
