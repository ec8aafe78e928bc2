// Kernels of `gae` and `gae_backward`: plain pointers, no torch header.
//
// Both are linear recurrences over time, one per column of the time-major [T, N] arrays, so a
// stretch of steps acts on what enters it as an affine map x -> offset + factor * x. With many
// columns one thread walks each. With few, the steps are cut into chunks: each thread first finds
// the map of its chunk, the maps are composed in shared memory, and the chunks are walked again
// with what enters them known. That reads the inputs twice (the second time mostly from L2) for
// kChunks times the parallelism.
#pragma once

#include <cstdint>

#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kColumnThreads = 128;  // threads of a block that walk a column each
constexpr int kChunkColumns = 32;    // columns of a block that cuts time: one warp wide
constexpr int kChunks = 16;          // chunks that time is cut into

// Mean and sum of squared deviations of some steps of a column.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Chan et al., 1983: nothing cancels, however large the mean.
  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, weight = other.count / total;
    const double delta = other.mean - mean;
    mean += delta * weight;
    squares += other.squares + delta * delta * count * weight;
    count = total;
  }

  // x - x is 0, or NaN where an advantage was not finite.
  __device__ void write(double* moments, int64_t columns, int64_t column) const {
    moments[column] = mean + (squares - squares);
    moments[columns + column] = squares + (squares - squares);
  }
};

// One column: its de-normalisation, and the steps of its recurrence.
template <typename scalar_t>
struct GaeColumn {
  const GaeArgs<scalar_t>& args;
  int64_t column;
  scalar_t mean = 0, std = 1;

  __device__ GaeColumn(const GaeArgs<scalar_t>& args, int64_t column) : args(args), column(column) {
    if (args.value_mean != nullptr) {
      mean = args.value_mean[column];
      std = args.value_std[column];
    }
  }

  __device__ scalar_t value(int64_t step) const {
    return args.values[step * args.columns + column] * std + mean;
  }

  // The TD error of a step, given the value of the step after it, and whether the recurrence
  // passes.
  __device__ scalar_t error(int64_t step, scalar_t value, scalar_t next_value, bool* passes) const {
    const int64_t at = step * args.columns + column;
    const bool terminated = args.terminated[at] != 0;
    const bool truncated = args.truncated[at] != 0;
    if (terminated) {
      next_value = 0;
    } else if (truncated && args.final_values != nullptr) {
      next_value = args.final_values[at] * std + mean;
    }
    *passes = !(terminated || truncated);
    return args.rewards[at] - value + args.gamma * next_value;
  }

  // Walks the steps [begin, end) backwards from the advantage that enters, writes them and returns
  // their moments. These are summed about the first advantage: as one of them it is at most the
  // root of (end - begin) standard deviations from their mean, so that in double little cancels.
  __device__ Moments walk(int64_t begin, int64_t end, scalar_t carry) const {
    double pivot = 0, sum = 0, square_sum = 0;
    scalar_t next_value = value(end);
    for (int64_t step = end - 1; step >= begin; --step) {
      const scalar_t here = value(step);
      bool passes;
      const scalar_t delta = error(step, here, next_value, &passes);
      carry = passes ? delta + args.decay * carry : delta;
      const int64_t at = step * args.columns + column;
      args.advantages[at] = carry;
      args.returns[at] = carry + here;
      if (step == end - 1) pivot = carry;
      const double deviation = carry - pivot;
      sum += deviation;
      square_sum += deviation * deviation;
      next_value = here;
    }
    if (begin == end) return {};
    const double count = static_cast<double>(end - begin), shift = sum / count;
    const double squares = square_sum - sum * shift;
    return {count, pivot + shift, squares < 0 ? 0 : squares};
  }
};

// One thread owns one column and walks it backwards; neighbouring threads touch neighbouring
// addresses at every step, so loads and stores coalesce. The steps of a column depend on each
// other, hence parallelism is N: below some thousand columns the GPU is idle.
//
// Launch: grid.x * kColumnThreads >= columns. No shared memory. Writes every output.
template <typename scalar_t>
__global__ void gae_columns_kernel(GaeArgs<scalar_t> args) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (column >= args.columns) return;
  const GaeColumn<scalar_t> walker(args, column);
  walker.walk(0, args.steps, scalar_t(0)).write(args.moments, args.columns, column);
}

// Thread (x, y) owns chunk y of column x of its block's kChunkColumns columns; a warp is one chunk
// of neighbouring columns, so loads and stores coalesce. Parallelism is kChunks * N.
//
// Launch: block (kChunkColumns, kChunks), grid.x * kChunkColumns >= columns. Writes every output.
template <typename scalar_t>
__global__ void gae_chunked_kernel(GaeArgs<scalar_t> args) {
  __shared__ scalar_t factors[kChunks][kChunkColumns];
  __shared__ scalar_t offsets[kChunks][kChunkColumns];
  __shared__ double counts[kChunks][kChunkColumns];
  __shared__ double means[kChunks][kChunkColumns];
  __shared__ double squares[kChunks][kChunkColumns];
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kChunkColumns + x;
  const int64_t length = (args.steps + kChunks - 1) / kChunks;
  const int64_t from = y * length, to = from + length;
  const int64_t begin = from < args.steps ? from : args.steps;
  const int64_t end = to < args.steps ? to : args.steps;
  const bool works = column < args.columns && begin < end;

  scalar_t factor = 1, offset = 0;
  if (works) {
    const GaeColumn<scalar_t> walker(args, column);
    scalar_t next_value = walker.value(end);
    for (int64_t step = end - 1; step >= begin; --step) {
      const scalar_t here = walker.value(step);
      bool passes;
      const scalar_t delta = walker.error(step, here, next_value, &passes);
      offset = passes ? delta + args.decay * offset : delta;
      factor = passes ? args.decay * factor : scalar_t(0);
      next_value = here;
    }
  }
  factors[y][x] = factor;
  offsets[y][x] = offset;
  __syncthreads();

  scalar_t carry = 0;  // the advantage after this chunk: all later chunks composed
  for (int later = kChunks - 1; later > y; --later) {
    carry = offsets[later][x] + factors[later][x] * carry;
  }
  Moments moments;
  if (works) moments = GaeColumn<scalar_t>(args, column).walk(begin, end, carry);
  counts[y][x] = moments.count;
  means[y][x] = moments.mean;
  squares[y][x] = moments.squares;
  __syncthreads();

  if (y == 0 && column < args.columns) {
    for (int chunk = 1; chunk < kChunks; ++chunk) {
      moments.merge({counts[chunk][x], means[chunk][x], squares[chunk][x]});
    }
    moments.write(args.moments, args.columns, column);
  }
}

// The adjoint recurrence of one column: it runs forwards in time, and what passes from a step to
// the next is the gradient of its TD error.
template <typename scalar_t>
struct GaeBackwardColumn {
  const GaeBackwardArgs<scalar_t>& args;
  int64_t column;

  __device__ GaeBackwardColumn(const GaeBackwardArgs<scalar_t>& args, int64_t column)
      : args(args), column(column) {}

  // What of the gradient of a step's TD error reaches the advantage of the step after it.
  __device__ scalar_t passes(int64_t step) const {
    const int64_t at = step * args.columns + column;
    return args.terminated[at] != 0 || args.truncated[at] != 0 ? scalar_t(0) : args.decay;
  }

  // What of it reaches the value of the step after it.
  __device__ scalar_t bootstraps(int64_t step) const {
    const int64_t at = step * args.columns + column;
    const bool elsewhere = args.grad_final_values != nullptr && args.truncated[at] != 0;
    return args.terminated[at] != 0 || elsewhere ? scalar_t(0) : args.gamma;
  }

  // What a step receives from the outputs.
  __device__ scalar_t source(int64_t step) const {
    const int64_t at = step * args.columns + column;
    return args.grad_advantages[at] + args.grad_returns[at];
  }

  // Walks the steps [begin, end), given the gradient of the TD error of the step before them.
  __device__ void walk(int64_t begin, int64_t end, scalar_t before) const {
    for (int64_t step = begin; step < end; ++step) {
      const int64_t at = step * args.columns + column;
      const scalar_t grad = source(step) + (step > 0 ? passes(step - 1) * before : scalar_t(0));
      const scalar_t boot = step > 0 ? bootstraps(step - 1) * before : scalar_t(0);
      args.grad_rewards[at] = grad;
      args.grad_values[at] = args.grad_returns[at] - grad + boot;
      if (args.grad_final_values != nullptr) {
        const bool used = args.truncated[at] != 0 && args.terminated[at] == 0;
        args.grad_final_values[at] = used ? args.gamma * grad : scalar_t(0);
      }
      before = grad;
    }
    if (end == args.steps) {
      args.grad_values[end * args.columns + column] = bootstraps(end - 1) * before;
    }
  }
};

// As gae_columns_kernel. Launch: grid.x * kColumnThreads >= columns; steps > 0.
template <typename scalar_t>
__global__ void gae_backward_columns_kernel(GaeBackwardArgs<scalar_t> args) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (column >= args.columns) return;
  GaeBackwardColumn<scalar_t>(args, column).walk(0, args.steps, scalar_t(0));
}

// As gae_chunked_kernel, forwards. Launch: block (kChunkColumns, kChunks),
// grid.x * kChunkColumns >= columns; steps > 0.
template <typename scalar_t>
__global__ void gae_backward_chunked_kernel(GaeBackwardArgs<scalar_t> args) {
  __shared__ scalar_t factors[kChunks][kChunkColumns];
  __shared__ scalar_t offsets[kChunks][kChunkColumns];
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kChunkColumns + x;
  const int64_t length = (args.steps + kChunks - 1) / kChunks;
  const int64_t from = y * length, to = from + length;
  const int64_t begin = from < args.steps ? from : args.steps;
  const int64_t end = to < args.steps ? to : args.steps;
  const bool works = column < args.columns && begin < end;

  scalar_t factor = 1, offset = 0;
  if (works) {
    const GaeBackwardColumn<scalar_t> walker(args, column);
    for (int64_t step = begin; step < end; ++step) {
      const scalar_t pass = step > 0 ? walker.passes(step - 1) : scalar_t(0);
      offset = walker.source(step) + pass * offset;
      factor = pass * factor;
    }
  }
  factors[y][x] = factor;
  offsets[y][x] = offset;
  __syncthreads();

  scalar_t before = 0;
  for (int earlier = 0; earlier < y; ++earlier) {
    before = offsets[earlier][x] + factors[earlier][x] * before;
  }
  if (works) GaeBackwardColumn<scalar_t>(args, column).walk(begin, end, before);
}

}  // namespace mg2l
