// Launcher of `contrast`.
#include "contrast.cuh"

namespace mg2l {
namespace {

template <typename scalar_t>
int launch_contrast(const ContrastArgs<scalar_t>& args, void* stream) {
  if (args.groups == 0) return cudaSuccess;
  const unsigned groups = static_cast<unsigned>(args.groups);
  if (args.rows > 0) {
    const auto rows = contrast_rows_kernel<scalar_t>;
    MG2L_LAUNCH(rows, dim3(static_cast<unsigned>(args.rows), groups), dim3(kContrastWarp), stream,
                args);
    if (const int status = cudaGetLastError()) return status;
  }
  const auto keys = contrast_keys_kernel<scalar_t>;
  MG2L_LAUNCH(keys, dim3(static_cast<unsigned>(args.keys_count + 1), groups),
              dim3(kContrastThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_contrast_float(const ContrastArgs<float>* args, void* stream) {
  return launch_contrast(*args, stream);
}
int mg2l_contrast_double(const ContrastArgs<double>* args, void* stream) {
  return launch_contrast(*args, stream);
}

}  // namespace mg2l
