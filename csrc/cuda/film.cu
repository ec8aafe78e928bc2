// Launchers of `film` and `film_backward`.
#include "film.cuh"

namespace mg2l {
namespace {

template <typename scalar_t>
unsigned blocks_of_numbers(const FilmArgs<scalar_t>& args) {
  const int64_t numbers = args.groups * args.rows * args.width;
  return static_cast<unsigned>((numbers + kFilmThreads - 1) / kFilmThreads);
}

template <typename scalar_t>
int launch_film(const FilmForwardArgs<scalar_t>& args, void* stream) {
  const unsigned blocks = blocks_of_numbers(args.in);
  if (blocks == 0) return cudaSuccess;
  const auto kernel = film_kernel<scalar_t>;
  MG2L_LAUNCH(kernel, dim3(blocks), dim3(kFilmThreads), stream, args);
  return cudaGetLastError();
}

template <typename scalar_t>
int launch_film_backward(const FilmBackwardArgs<scalar_t>& args, void* stream) {
  const unsigned blocks = blocks_of_numbers(args.in);
  if (blocks > 0) {
    const auto kernel = film_backward_kernel<scalar_t>;
    MG2L_LAUNCH(kernel, dim3(blocks), dim3(kFilmThreads), stream, args);
    const int status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  }
  const int64_t numbers = args.in.groups * args.in.latents * args.in.width;
  if (!args.in.shared || numbers == 0) return cudaSuccess;
  const int64_t columns = kFilmWarps * 32;
  const dim3 grid(static_cast<unsigned>(args.in.latents),
                  static_cast<unsigned>((args.in.width + columns - 1) / columns),
                  static_cast<unsigned>(args.in.groups));
  const auto kernel = film_backward_sums_kernel<scalar_t>;
  MG2L_LAUNCH(kernel, grid, dim3(32, kFilmWarps), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_film_float(const FilmForwardArgs<float>* args, void* stream) {
  return launch_film(*args, stream);
}
int mg2l_film_double(const FilmForwardArgs<double>* args, void* stream) {
  return launch_film(*args, stream);
}
int mg2l_film_backward_float(const FilmBackwardArgs<float>* args, void* stream) {
  return launch_film_backward(*args, stream);
}
int mg2l_film_backward_double(const FilmBackwardArgs<double>* args, void* stream) {
  return launch_film_backward(*args, stream);
}

}  // namespace mg2l
