// CPU kernel of `clip_norms`.
#include "clip_norms.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "vec.h"

namespace mg2l {
namespace {

constexpr int64_t kBlock = 4096;       // numbers that are summed in scalar_t
constexpr int64_t kMinTaskBlocks = 8;  // below it a thread costs more

// Numbers of one group that lie behind each other.
template <typename scalar_t>
struct Block {
  scalar_t* begin;
  int64_t count, group;
};

template <int kBytes, typename scalar_t>
MG2L_INLINE double square_of(const scalar_t* x, int64_t count) {
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(scalar_t)), kSums = 4;
  using V = Vec<scalar_t, kLanes>;
  V sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      const V v = load<V>(x + i + s * kLanes);
      sums[s] += v * v;
    }
  }
  scalar_t rest = 0;
  for (; i < count; ++i) rest += x[i] * x[i];
  return static_cast<double>(sum_lanes<scalar_t, kLanes>(sums[0] + sums[1] + sums[2] + sums[3]) +
                             rest);
}

template <typename scalar_t>
MG2L_INLINE void multiply(scalar_t* x, int64_t count, scalar_t scale) {
  for (int64_t i = 0; i < count; ++i) x[i] *= scale;
}

template <typename scalar_t>
std::vector<Block<scalar_t>> blocks_of(std::vector<Tensor>& gradients, int64_t groups) {
  std::vector<Block<scalar_t>> blocks;
  for (Tensor& gradient : gradients) {
    const int64_t size = groups == 0 ? 0 : gradient.numel() / groups;
    for (int64_t group = 0; group < groups; ++group) {
      scalar_t* begin = data<scalar_t>(gradient) + group * size;
      for (int64_t at = 0; at < size; at += kBlock) {
        blocks.push_back({begin + at, std::min(kBlock, size - at), group});
      }
    }
  }
  return blocks;
}

template <typename scalar_t>
void clip(std::vector<Tensor>& gradients, double limit, Tensor& norms) {
  const int64_t groups = norms.numel();
  const auto blocks = blocks_of<scalar_t>(gradients, groups);
  const auto count = static_cast<int64_t>(blocks.size());
  std::vector<double> squares(blocks.size());
  const auto each = [&](const auto& work) {
    torch::stable::parallel_for(0, count, kMinTaskBlocks, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) work(static_cast<size_t>(i));
    });
  };
  each([&](size_t i) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      squares[i] = square_of<bytes>(blocks[i].begin, blocks[i].count);
    });
  });
  // Blocks are added in order, so that results do not depend on the number of threads.
  std::vector<double> totals(static_cast<size_t>(groups));
  for (size_t i = 0; i < blocks.size(); ++i) {
    totals[static_cast<size_t>(blocks[i].group)] += squares[i];
  }
  std::vector<scalar_t> scales(totals.size());
  bool any = false;
  for (size_t group = 0; group < totals.size(); ++group) {
    const scalar_t norm = static_cast<scalar_t>(std::sqrt(totals[group]));
    const scalar_t scale =
        static_cast<scalar_t>(limit) / (norm + static_cast<scalar_t>(kNormFloor));
    data<scalar_t>(norms)[group] = norm;
    scales[group] = scale > 1 ? scalar_t(1) : scale;  // NaN stays
    any = any || scales[group] != 1;
  }
  if (!any) return;
  each([&](size_t i) {
    const scalar_t scale = scales[static_cast<size_t>(blocks[i].group)];
    if (scale == 1) return;
    run_simd([&](auto) MG2L_INLINE_LAMBDA { multiply(blocks[i].begin, blocks[i].count, scale); });
  });
}

}  // namespace

Tensor clip_norms_cpu(std::vector<Tensor> gradients, double limit, bool per_group) {
  const int64_t groups = check_clip_norms(gradients, limit, per_group);
  Tensor norms = allocate(gradients[0], {groups});
  for_floating(norms.scalar_type(),
               [&](auto zero) { clip<decltype(zero)>(gradients, limit, norms); });
  return norms;
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) { m.impl("clip_norms", TORCH_BOX(&mg2l::clip_norms_cpu)); }
