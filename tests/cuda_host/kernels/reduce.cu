// Launchers of the self-test kernels.
#include "launchers.h"
#include "reduce.cuh"

using namespace self_test;

namespace {

unsigned as_grid(int64_t blocks) { return static_cast<unsigned>(blocks); }

template <int kFloats>
int launch_much_shared(const SharedArgs& args, void* stream) {
  const auto kernel = much_shared_kernel<kFloats>;
  const auto bytes = static_cast<size_t>(args.dynamic_bytes);
  if (args.opt_in) {
    MG2L_LAUNCH_SHARED(kernel, dim3(1), dim3(1), bytes, stream, args.dynamic_bytes / 4, args.y);
  } else {
    cuda_host::launch_shared(kernel, dim3(1), dim3(1), bytes, args.dynamic_bytes / 4, args.y);
  }
  return cudaGetLastError();
}

}  // namespace

int row_sum(const RowArgs* args, void* stream) {
  MG2L_LAUNCH(row_sum_kernel, dim3(as_grid(args->rows)), dim3(kBlock), stream, args->columns,
              args->x, args->y);
  return cudaGetLastError();
}

int row_scan(const RowArgs* args, void* stream) {
  MG2L_LAUNCH(row_scan_kernel, dim3(as_grid(args->rows)), dim3(kBlock), stream, args->columns,
              args->x, args->y);
  return cudaGetLastError();
}

int reverse(const RowArgs* args, void* stream) {
  MG2L_LAUNCH_SHARED(reverse_kernel, dim3(as_grid(args->rows)), dim3(as_grid(args->columns)),
                     sizeof(float) * static_cast<size_t>(args->columns), stream, args->x, args->y);
  return cudaGetLastError();
}

int histogram(const HistogramArgs* args, void* stream) {
  MG2L_LAUNCH(histogram_kernel, dim3(8), dim3(128), stream, args->count / 4,
              reinterpret_cast<const float4*>(args->x), args->counts);
  return cudaGetLastError();
}

int warp_transpose(const TransposeArgs* args, void* stream) {
  MG2L_LAUNCH(warp_transpose_kernel, dim3(as_grid(args->tiles)), dim3(32), stream, args->x,
              args->transposed);
  return cudaGetLastError();
}

int warp_vote(const VoteArgs* args, void* stream) {
  MG2L_LAUNCH(warp_vote_kernel, dim3(as_grid((args->count + 63) / 64)), dim3(64), stream,
              args->count, args->x, args->positive, args->largest);
  return cudaGetLastError();
}

int much_shared(const SharedArgs* args, void* stream) {
  if (args->static_floats == 1024) return launch_much_shared<1024>(*args, stream);
  if (args->static_floats == 12288) return launch_much_shared<12288>(*args, stream);
  return launch_much_shared<12289>(*args, stream);
}

int pairs(const PairsArgs* args, void* stream) {
  MG2L_LAUNCH(pairs_kernel, dim3(1), dim3(as_grid(args->count)), stream, args->shift, args->x,
              args->pairs);
  return cudaGetLastError();
}
