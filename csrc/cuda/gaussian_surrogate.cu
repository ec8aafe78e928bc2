// Launcher of `gaussian_surrogate`.
#include "gaussian_surrogate.cuh"

namespace mg2l {
namespace {

template <typename scalar_t>
int launch_gaussian(const GaussianArgs<scalar_t>& args, void* stream) {
  if (args.agents == 0) return cudaSuccess;
  const auto kernel = gaussian_surrogate_kernel<scalar_t>;
  MG2L_LAUNCH(kernel, dim3(static_cast<unsigned>(args.agents)), dim3(kClippedThreads), stream,
              args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_gaussian_surrogate_float(const GaussianArgs<float>* args, void* stream) {
  return launch_gaussian(*args, stream);
}
int mg2l_gaussian_surrogate_double(const GaussianArgs<double>* args, void* stream) {
  return launch_gaussian(*args, stream);
}

}  // namespace mg2l
