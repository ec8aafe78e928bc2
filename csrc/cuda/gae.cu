// Launchers of `gae` and `gae_backward`.
#include "gae.cuh"

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

const char* mg2l_error_string(int status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

int mg2l_gae_float(const GaeArgs<float>* args, void* stream) { return launch_gae(*args, stream); }
int mg2l_gae_double(const GaeArgs<double>* args, void* stream) { return launch_gae(*args, stream); }
int mg2l_gae_backward_float(const GaeBackwardArgs<float>* args, void* stream) {
  return launch_gae_backward(*args, stream);
}
int mg2l_gae_backward_double(const GaeBackwardArgs<double>* args, void* stream) {
  return launch_gae_backward(*args, stream);
}

}  // namespace mg2l
