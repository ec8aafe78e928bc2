// Launchers of `innovation_moments` and `innovation_moments_backward`.
#include "innovation_moments.cuh"

namespace mg2l {
namespace {

template <typename scalar_t, typename Kernel>
int launch_pairs(Kernel kernel, const InnovationArgs<scalar_t>& args, void* stream) {
  const int64_t pairs = args.contexts * args.agents;
  if (pairs == 0) return cudaSuccess;
  MG2L_LAUNCH(kernel, dim3(static_cast<unsigned>(pairs)), dim3(kInnovationThreads), stream, args);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_backward(const InnovationArgs<scalar_t>& args, void* stream) {
  const int64_t numbers = args.rows * args.agents * args.width;
  if (numbers > 0) {
    const auto zero = innovation_moments_zero_kernel<scalar_t>;
    const int64_t blocks = (numbers + kInnovationThreads - 1) / kInnovationThreads;
    MG2L_LAUNCH(zero, dim3(static_cast<unsigned>(blocks)), dim3(kInnovationThreads), stream, args);
    if (const int status = cudaGetLastError()) return status;
  }
  return launch_pairs(innovation_moments_backward_kernel<scalar_t>, args, stream);
}

}  // namespace

int mg2l_innovation_moments_float(const InnovationArgs<float>* args, void* stream) {
  return launch_pairs(innovation_moments_kernel<float>, *args, stream);
}
int mg2l_innovation_moments_double(const InnovationArgs<double>* args, void* stream) {
  return launch_pairs(innovation_moments_kernel<double>, *args, stream);
}
int mg2l_innovation_moments_backward_float(const InnovationArgs<float>* args, void* stream) {
  return launch_backward(*args, stream);
}
int mg2l_innovation_moments_backward_double(const InnovationArgs<double>* args, void* stream) {
  return launch_backward(*args, stream);
}

}  // namespace mg2l
