// Launchers of `gelu_mlp` and `gelu_mlp_backward`.
#include "gelu_mlp.cuh"

namespace mg2l {
namespace {

template <typename Args, typename Kernel>
int launch_numbers(Kernel kernel, const Args& args, void* stream) {
  const int64_t blocks = (args.rows * args.units + kGeluThreads - 1) / kGeluThreads;
  if (blocks == 0) return cudaSuccess;
  MG2L_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kGeluThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_gelu_mlp_float(const GeluForwardArgs<float>* args, void* stream) {
  return launch_numbers(gelu_mlp_kernel<float>, *args, stream);
}
int mg2l_gelu_mlp_double(const GeluForwardArgs<double>* args, void* stream) {
  return launch_numbers(gelu_mlp_kernel<double>, *args, stream);
}
int mg2l_gelu_mlp_backward_float(const GeluBackwardArgs<float>* args, void* stream) {
  return launch_numbers(gelu_mlp_backward_kernel<float>, *args, stream);
}
int mg2l_gelu_mlp_backward_double(const GeluBackwardArgs<double>* args, void* stream) {
  return launch_numbers(gelu_mlp_backward_kernel<double>, *args, stream);
}

}  // namespace mg2l
