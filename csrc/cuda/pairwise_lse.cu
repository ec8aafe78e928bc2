// Launchers of `pairwise_lse` and `pairwise_lse_backward`.
#include "launchers.h"
#include "pairwise_lse.cuh"

namespace mg2l {
namespace {

unsigned tiles(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename scalar_t>
void launch_offsets(const PairArgs<scalar_t>& args, void* stream) {
  if (args.std == nullptr) return;
  MG2L_LAUNCH(pair_offsets_kernel<scalar_t>, dim3(tiles(args.groups * args.keys, kOffsetThreads)),
              dim3(kOffsetThreads), stream, args);
}

template <typename scalar_t>
int launch_pairwise_lse(const PairResultArgs<scalar_t>& out, void* stream) {
  const PairArgs<scalar_t>& args = out.args;
  if (args.groups == 0 || args.queries == 0) return cudaSuccess;
  launch_offsets(args, stream);
  const auto kernel = args.std == nullptr ? pairwise_lse_kernel<false, scalar_t>
                                          : pairwise_lse_kernel<true, scalar_t>;
  MG2L_LAUNCH(kernel, dim3(tiles(args.queries, kSide), static_cast<unsigned>(args.groups)),
              dim3(kSide, kPairWarps), stream, out);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_pairwise_lse_backward(const PairBackwardArgs<scalar_t>& g, void* stream) {
  const PairArgs<scalar_t>& args = g.args;
  if (args.groups == 0 || args.queries == 0) return cudaSuccess;
  launch_offsets(args, stream);
  const auto groups = static_cast<unsigned>(args.groups);
  const bool gaussian = args.std != nullptr;
  const auto queries_kernel = gaussian ? pairwise_lse_backward_queries_kernel<true, scalar_t>
                                       : pairwise_lse_backward_queries_kernel<false, scalar_t>;
  const auto keys_kernel = gaussian ? pairwise_lse_backward_keys_kernel<true, scalar_t>
                                    : pairwise_lse_backward_keys_kernel<false, scalar_t>;
  MG2L_LAUNCH(queries_kernel, dim3(tiles(args.queries, kSide), groups), dim3(kSide, kPairWarps),
              stream, g);
  MG2L_LAUNCH(keys_kernel, dim3(tiles(args.keys, kSide), groups), dim3(kSide, kPairWarps), stream,
              g);
  return cudaGetLastError();
}

}  // namespace
}  // namespace mg2l

#define MG2L_PAIRWISE_LAUNCHERS(scalar_t)                                                          \
  int mg2l_pairwise_lse_##scalar_t(                                                                \
      int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,     \
      const scalar_t* query, const scalar_t* key, const scalar_t* std, const int64_t* positive,    \
      const int64_t* query_labels, const int64_t* key_labels, const uint8_t* mask,                 \
      scalar_t* offsets, scalar_t* lse, scalar_t* lse_negatives, scalar_t* mean,                   \
      scalar_t* positive_score, int64_t* negatives, int64_t* rank, void* stream) {                 \
    return mg2l::launch_pairwise_lse<scalar_t>(                                                    \
        {{groups, queries, keys, width, static_cast<scalar_t>(scale), static_cast<scalar_t>(clip), \
          query, key, std, positive, query_labels, key_labels, mask, offsets},                     \
         lse,                                                                                      \
         lse_negatives,                                                                            \
         mean,                                                                                     \
         positive_score,                                                                           \
         negatives,                                                                                \
         rank},                                                                                    \
        stream);                                                                                   \
  }                                                                                                \
  int mg2l_pairwise_lse_backward_##scalar_t(                                                       \
      int64_t groups, int64_t queries, int64_t keys, int64_t width, double scale, double clip,     \
      const scalar_t* query, const scalar_t* key, const scalar_t* std, const int64_t* positive,    \
      const int64_t* query_labels, const int64_t* key_labels, const uint8_t* mask,                 \
      scalar_t* offsets, const scalar_t* lse, const scalar_t* lse_negatives,                       \
      const int64_t* negatives, const scalar_t* to_lse, const scalar_t* to_negatives,              \
      const scalar_t* to_mean, const scalar_t* to_positive, scalar_t* grad_query,                  \
      scalar_t* grad_key, scalar_t* grad_std, void* stream) {                                      \
    return mg2l::launch_pairwise_lse_backward<scalar_t>(                                           \
        {{groups, queries, keys, width, static_cast<scalar_t>(scale), static_cast<scalar_t>(clip), \
          query, key, std, positive, query_labels, key_labels, mask, offsets},                     \
         lse,                                                                                      \
         lse_negatives,                                                                            \
         negatives,                                                                                \
         to_lse,                                                                                   \
         to_negatives,                                                                             \
         to_mean,                                                                                  \
         to_positive,                                                                              \
         grad_query,                                                                               \
         grad_key,                                                                                 \
         grad_std},                                                                                \
        stream);                                                                                   \
  }

MG2L_PAIRWISE_LAUNCHERS(float)
MG2L_PAIRWISE_LAUNCHERS(double)
