// Launchers of the self-test kernels.
#include "launchers.h"
#include "reduce.cuh"

using namespace self_test;

namespace {
unsigned as_grid(int64_t blocks) { return static_cast<unsigned>(blocks); }
}  // namespace

int row_sum(int64_t rows, int64_t columns, const float* x, float* sums, void* stream) {
  MG2L_LAUNCH(row_sum_kernel, dim3(as_grid(rows)), dim3(kBlock), stream, columns, x, sums);
  return cudaGetLastError();
}

int row_scan(int64_t rows, int64_t columns, const float* x, float* scan, void* stream) {
  MG2L_LAUNCH(row_scan_kernel, dim3(as_grid(rows)), dim3(kBlock), stream, columns, x, scan);
  return cudaGetLastError();
}

int histogram(int64_t count, const float* x, int32_t* counts, void* stream) {
  MG2L_LAUNCH(histogram_kernel, dim3(8), dim3(128), stream, count / 4,
              reinterpret_cast<const float4*>(x), counts);
  return cudaGetLastError();
}

int warp_transpose(int64_t tiles, const float* x, float* transposed, void* stream) {
  MG2L_LAUNCH(warp_transpose_kernel, dim3(as_grid(tiles)), dim3(32), stream, x, transposed);
  return cudaGetLastError();
}

int warp_vote(int64_t count, const float* x, int32_t* positive, float* largest, void* stream) {
  MG2L_LAUNCH(warp_vote_kernel, dim3(as_grid((count + 63) / 64)), dim3(64), stream, count, x,
              positive, largest);
  return cudaGetLastError();
}

int pairs(int64_t count, int64_t shift, const float* x, double* pairs, void* stream) {
  MG2L_LAUNCH(pairs_kernel, dim3(1), dim3(as_grid(count)), stream, shift, x, pairs);
  return cudaGetLastError();
}

int greedy(int64_t bytes, const float* x, float* reversed, void* stream) {
  static_cast<void>(stream);
  cuda_host::launch_shared(reverse_kernel, dim3(1), dim3(1), static_cast<size_t>(bytes), x,
                           reversed);
  return cudaGetLastError();
}

int reverse(int64_t rows, int64_t columns, const float* x, float* reversed, void* stream) {
  static_cast<void>(stream);
  cuda_host::launch_shared(reverse_kernel, dim3(as_grid(rows)), dim3(as_grid(columns)),
                           sizeof(float) * static_cast<size_t>(columns), x, reversed);
  return cudaGetLastError();
}
