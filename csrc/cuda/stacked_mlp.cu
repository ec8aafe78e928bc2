// Launchers of `stacked_mlp` and `stacked_mlp_backward`.
#include "stacked_mlp.cuh"

namespace mg2l {
namespace {

template <typename Args, typename Kernel>
int launch_rows(Kernel kernel, const Args& args, void* stream) {
  const int64_t rows = args.groups * args.rows;
  if (rows == 0) return cudaSuccess;
  MG2L_LAUNCH(kernel, dim3(static_cast<unsigned>((rows + kMlpRows - 1) / kMlpRows)),
              dim3(kMlpWarp, kMlpRows), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_stacked_mlp_float(const MlpForwardArgs<float>* args, void* stream) {
  return launch_rows(stacked_mlp_kernel<float>, *args, stream);
}
int mg2l_stacked_mlp_double(const MlpForwardArgs<double>* args, void* stream) {
  return launch_rows(stacked_mlp_kernel<double>, *args, stream);
}
int mg2l_stacked_mlp_backward_float(const MlpBackwardArgs<float>* args, void* stream) {
  return launch_rows(stacked_mlp_backward_kernel<float>, *args, stream);
}
int mg2l_stacked_mlp_backward_double(const MlpBackwardArgs<double>* args, void* stream) {
  return launch_rows(stacked_mlp_backward_kernel<double>, *args, stream);
}

}  // namespace mg2l
