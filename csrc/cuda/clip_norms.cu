// Launchers of `clip_norms`.
#include "clip_norms.cuh"

namespace mg2l {
namespace {

template <typename Kernel, typename scalar_t>
int launch_clip(Kernel kernel, const ClipArgs<scalar_t>& args, void* stream) {
  if (args.groups == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.blocks), static_cast<unsigned>(args.groups));
  MG2L_LAUNCH(kernel, grid, dim3(kClipThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_clip_norms_sum_float(const ClipArgs<float>* args, void* stream) {
  return launch_clip(clip_norms_sum_kernel<float>, *args, stream);
}
int mg2l_clip_norms_sum_double(const ClipArgs<double>* args, void* stream) {
  return launch_clip(clip_norms_sum_kernel<double>, *args, stream);
}
int mg2l_clip_norms_scale_float(const ClipArgs<float>* args, void* stream) {
  return launch_clip(clip_norms_scale_kernel<float>, *args, stream);
}
int mg2l_clip_norms_scale_double(const ClipArgs<double>* args, void* stream) {
  return launch_clip(clip_norms_scale_kernel<double>, *args, stream);
}

}  // namespace mg2l
