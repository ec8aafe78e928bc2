// Launchers of `surrogate` and `value_loss`.
#include "clipped.cuh"

namespace mg2l {
namespace {

template <template <typename> class Rows, typename scalar_t>
int launch_clipped(const ClippedArgs<scalar_t>& args, void* stream) {
  if (args.agents == 0) return cudaSuccess;
  const auto kernel = clipped_kernel<Rows, scalar_t>;
  MG2L_LAUNCH(kernel, dim3(static_cast<unsigned>(args.agents)), dim3(kClippedThreads), stream,
              args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_surrogate_float(const ClippedArgs<float>* args, void* stream) {
  return launch_clipped<SurrogateRows>(*args, stream);
}
int mg2l_surrogate_double(const ClippedArgs<double>* args, void* stream) {
  return launch_clipped<SurrogateRows>(*args, stream);
}
int mg2l_value_loss_float(const ClippedArgs<float>* args, void* stream) {
  return launch_clipped<ValueRows>(*args, stream);
}
int mg2l_value_loss_double(const ClippedArgs<double>* args, void* stream) {
  return launch_clipped<ValueRows>(*args, stream);
}

}  // namespace mg2l
