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

// Steps whose inputs a thread has loads in flight for: as many as registers hold.
template <typename scalar_t>
constexpr int kAhead = sizeof(scalar_t) == 4 ? 4 : 2;

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

// Inputs of kAhead steps of a column.
template <typename scalar_t>
struct GaeInputs {
  scalar_t rewards[kAhead<scalar_t>], values[kAhead<scalar_t>], final_values[kAhead<scalar_t>];
  uint8_t terminated[kAhead<scalar_t>], truncated[kAhead<scalar_t>];
};

// One column: its de-normalisation, and the steps of its recurrence.
template <typename scalar_t>
struct GaeColumn {
  const scalar_t* __restrict__ rewards;
  const scalar_t* __restrict__ values;
  const scalar_t* __restrict__ final_values;  // something to load where there are none
  const uint8_t* __restrict__ terminated;
  const uint8_t* __restrict__ truncated;
  scalar_t* __restrict__ advantages;
  scalar_t* __restrict__ returns;
  int64_t columns;
  scalar_t gamma, decay, mean = 0, std = 1;
  bool has_final_values;

  __device__ GaeColumn(const GaeArgs<scalar_t>& args, int64_t column)
      : rewards(args.rewards + column),
        values(args.values + column),
        final_values((args.final_values == nullptr ? args.rewards : args.final_values) + column),
        terminated(args.terminated + column),
        truncated(args.truncated + column),
        advantages(args.advantages + column),
        returns(args.returns + column),
        columns(args.columns),
        gamma(args.gamma),
        decay(args.decay),
        has_final_values(args.final_values != nullptr) {
    if (args.value_mean != nullptr) {
      mean = args.value_mean[column];
      std = args.value_std[column];
    }
  }

  // Steps from `last` down, and `first` in place of those before it: no load waits for a flag.
  __device__ GaeInputs<scalar_t> load(int64_t last, int64_t first) const {
    GaeInputs<scalar_t> inputs;
#pragma unroll
    for (int k = 0; k < kAhead<scalar_t>; ++k) {
      const int64_t at = (last - k > first ? last - k : first) * columns;
      inputs.rewards[k] = rewards[at];
      inputs.values[k] = values[at];
      inputs.final_values[k] = final_values[at];
      inputs.terminated[k] = terminated[at];
      inputs.truncated[k] = truncated[at];
    }
    return inputs;
  }

  // Calls body(step, value, TD error, whether the recurrence passes) for the steps [begin, end),
  // last first; the inputs of the next ones are on their way meanwhile.
  template <typename Body>
  __device__ void each_step(int64_t begin, int64_t end, const Body& body) const {
    scalar_t next_value = values[end * columns] * std + mean;
    GaeInputs<scalar_t> ahead = load(end - 1, begin);
    for (int64_t last = end - 1; last >= begin; last -= kAhead<scalar_t>) {
      const GaeInputs<scalar_t> inputs = ahead;
      ahead = load(last - kAhead<scalar_t>, begin);
#pragma unroll
      for (int k = 0; k < kAhead<scalar_t>; ++k) {
        if (last - k < begin) break;
        const scalar_t value = inputs.values[k] * std + mean;
        const bool ends = inputs.terminated[k] != 0, cut = inputs.truncated[k] != 0;
        if (cut && has_final_values) next_value = inputs.final_values[k] * std + mean;
        if (ends) next_value = 0;
        body(last - k, value, inputs.rewards[k] - value + gamma * next_value, !(ends || cut));
        next_value = value;
      }
    }
  }

  // Walks the steps [begin, end) backwards from the advantage that enters, writes them and returns
  // their moments. These are summed about the first advantage: as one of them it is at most the
  // root of (end - begin) standard deviations from their mean, so that in double little cancels.
  __device__ Moments walk(int64_t begin, int64_t end, scalar_t carry) const {
    if (begin == end) return {};
    double pivot = 0, sum = 0, square_sum = 0;
    each_step(begin, end, [&](int64_t step, scalar_t value, scalar_t delta, bool passes) {
      carry = passes ? delta + decay * carry : delta;
      advantages[step * columns] = carry;
      returns[step * columns] = carry + value;
      if (step == end - 1) pivot = carry;
      const double deviation = carry - pivot;
      sum += deviation;
      square_sum += deviation * deviation;
    });
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

// What thread (x, y) of a block works on, if anything: steps [begin, end) of a column.
struct Chunk {
  int64_t column, begin, end;
  bool works;
};
inline __device__ Chunk chunk_of(int64_t steps, int64_t columns, int x, int y) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kChunkColumns + x;
  const int64_t length = (steps + kChunks - 1) / kChunks;
  const int64_t from = y * length, to = from + length;
  const int64_t begin = from < steps ? from : steps, end = to < steps ? to : steps;
  return {column, begin, end, column < columns && begin < end};
}

// Thread (x, y) owns chunk y of column x of its block's kChunkColumns columns; a warp is one chunk
// of neighbouring columns, so loads and stores coalesce. Parallelism is kChunks * N.
//
// Launch: block (kChunkColumns, kChunks), grid.x * kChunkColumns >= columns. Writes every output.
template <typename scalar_t>
__global__ void __launch_bounds__(kChunkColumns* kChunks)
    gae_chunked_kernel(GaeArgs<scalar_t> args) {
  __shared__ scalar_t factors[kChunks][kChunkColumns];
  __shared__ scalar_t offsets[kChunks][kChunkColumns];
  __shared__ double counts[kChunks][kChunkColumns];
  __shared__ double means[kChunks][kChunkColumns];
  __shared__ double squares[kChunks][kChunkColumns];
  const int x = threadIdx.x, y = threadIdx.y;
  const auto [column, begin, end, works] = chunk_of(args.steps, args.columns, x, y);

  scalar_t factor = 1, offset = 0;
  if (works) {
    const GaeColumn<scalar_t> walker(args, column);
    walker.each_step(begin, end, [&](int64_t, scalar_t, scalar_t delta, bool passes) {
      offset = passes ? delta + args.decay * offset : delta;
      factor = passes ? args.decay * factor : scalar_t(0);
    });
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

// Inputs of kAhead steps of a column's adjoint.
template <typename scalar_t>
struct GaeGradients {
  scalar_t advantages[kAhead<scalar_t>], returns[kAhead<scalar_t>];
  uint8_t terminated[kAhead<scalar_t>], truncated[kAhead<scalar_t>];
};

// The adjoint recurrence of one column: it runs forwards in time, and what passes from a step to
// the next is the gradient of its TD error.
template <typename scalar_t>
struct GaeBackwardColumn {
  const scalar_t* __restrict__ grad_advantages;
  const scalar_t* __restrict__ grad_returns;
  const uint8_t* __restrict__ terminated;
  const uint8_t* __restrict__ truncated;
  scalar_t* __restrict__ grad_rewards;
  scalar_t* __restrict__ grad_values;
  scalar_t* __restrict__ grad_final_values;  // or null
  int64_t steps, columns;
  scalar_t gamma, decay;

  __device__ GaeBackwardColumn(const GaeBackwardArgs<scalar_t>& args, int64_t column)
      : grad_advantages(args.grad_advantages + column),
        grad_returns(args.grad_returns + column),
        terminated(args.terminated + column),
        truncated(args.truncated + column),
        grad_rewards(args.grad_rewards + column),
        grad_values(args.grad_values + column),
        grad_final_values(args.grad_final_values == nullptr ? nullptr
                                                            : args.grad_final_values + column),
        steps(args.steps),
        columns(args.columns),
        gamma(args.gamma),
        decay(args.decay) {}

  // Steps from `first` on, and `last` in place of those after it.
  __device__ GaeGradients<scalar_t> load(int64_t first, int64_t last) const {
    GaeGradients<scalar_t> inputs;
#pragma unroll
    for (int k = 0; k < kAhead<scalar_t>; ++k) {
      const int64_t at = (first + k < last ? first + k : last) * columns;
      inputs.advantages[k] = grad_advantages[at];
      inputs.returns[k] = grad_returns[at];
      inputs.terminated[k] = terminated[at];
      inputs.truncated[k] = truncated[at];
    }
    return inputs;
  }

  // What of the gradient of a step's TD error reaches the advantage of the step after it, and the
  // value of the step after it.
  struct Passes {
    scalar_t to_advantage, to_value;
  };
  __device__ Passes passes(bool ends, bool cut) const {
    const bool elsewhere = grad_final_values != nullptr && cut;
    return {ends || cut ? scalar_t(0) : decay, ends || elsewhere ? scalar_t(0) : gamma};
  }
  __device__ Passes passes_into(int64_t step) const {
    if (step == 0) return {0, 0};
    const int64_t before = (step - 1) * columns;
    return passes(terminated[before] != 0, truncated[before] != 0);
  }

  // Calls body(step, gradients of advantage and return, what passes into it, whether its final
  // value counts) for the steps [begin, end).
  template <typename Body>
  __device__ void each_step(int64_t begin, int64_t end, const Body& body) const {
    Passes into = passes_into(begin);
    GaeGradients<scalar_t> ahead = load(begin, end - 1);
    for (int64_t first = begin; first < end; first += kAhead<scalar_t>) {
      const GaeGradients<scalar_t> inputs = ahead;
      ahead = load(first + kAhead<scalar_t>, end - 1);
#pragma unroll
      for (int k = 0; k < kAhead<scalar_t>; ++k) {
        if (first + k >= end) break;
        const bool ends = inputs.terminated[k] != 0, cut = inputs.truncated[k] != 0;
        body(first + k, inputs.advantages[k], inputs.returns[k], into, cut && !ends);
        into = passes(ends, cut);
      }
    }
  }

  // Walks the steps [begin, end), given the gradient of the TD error of the step before them.
  __device__ void walk(int64_t begin, int64_t end, scalar_t before) const {
    each_step(begin, end,
              [&](int64_t step, scalar_t advantage, scalar_t return_, Passes into, bool final) {
                const int64_t at = step * columns;
                const scalar_t grad = advantage + return_ + into.to_advantage * before;
                grad_rewards[at] = grad;
                grad_values[at] = return_ - grad + into.to_value * before;
                if (grad_final_values != nullptr) {
                  grad_final_values[at] = final ? gamma * grad : scalar_t(0);
                }
                before = grad;
              });
    if (end == steps) grad_values[end * columns] = passes_into(end).to_value * before;
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
__global__ void __launch_bounds__(kChunkColumns* kChunks)
    gae_backward_chunked_kernel(GaeBackwardArgs<scalar_t> args) {
  __shared__ scalar_t factors[kChunks][kChunkColumns];
  __shared__ scalar_t offsets[kChunks][kChunkColumns];
  const int x = threadIdx.x, y = threadIdx.y;
  const auto [column, begin, end, works] = chunk_of(args.steps, args.columns, x, y);

  scalar_t factor = 1, offset = 0;
  if (works) {
    using Walker = GaeBackwardColumn<scalar_t>;
    Walker(args, column)
        .each_step(begin, end,
                   [&](int64_t, scalar_t advantage, scalar_t return_,
                       const typename Walker::Passes& into, bool) {
                     offset = advantage + return_ + into.to_advantage * offset;
                     factor = into.to_advantage * factor;
                   });
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
