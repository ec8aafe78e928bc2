// CPU kernels of `pia_pool` and `pia_pool_backward`.
#include "pia_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "vec.h"

namespace mg2l {
namespace {

constexpr int64_t kTile = 32;           // inputs of a set worked on together: they stay in L1
constexpr int64_t kParts = 32;          // partial sums of grad_query, for any number of threads
constexpr int64_t kMinTaskWork = 8192;  // elements per task; below it a thread costs more

template <typename scalar_t>
struct PoolArrays {
  PoolSizes sizes;
  const scalar_t* x;      // [outer, length, inner, width]
  const scalar_t* query;  // [heads, width]
  const uint8_t* mask;    // [outer, length, inner] or null

  int64_t sets() const { return sizes.outer * sizes.inner; }

  // Where input t of a set lies, in units of `width`.
  int64_t at(int64_t set, int64_t t) const {
    return (set / sizes.inner * sizes.length + t) * sizes.inner + set % sizes.inner;
  }

  bool has(int64_t set, int64_t t) const { return mask == nullptr || mask[at(set, t)] != 0; }
};

template <int kBytes, typename scalar_t>
MG2L_INLINE scalar_t dot(const scalar_t* a, const scalar_t* b, int64_t width) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  V sum[2] = {V{}, V{}};
  int64_t d = 0;
  for (; d + 2 * kLanes <= width; d += 2 * kLanes) {
    sum[0] += load<V>(a + d) * load<V>(b + d);
    sum[1] += load<V>(a + d + kLanes) * load<V>(b + d + kLanes);
  }
  for (; d + kLanes <= width; d += kLanes) sum[0] += load<V>(a + d) * load<V>(b + d);
  scalar_t total = sum_lanes<scalar_t, kLanes>(sum[0] + sum[1]);
  for (; d < width; ++d) total += a[d] * b[d];
  return total;
}

// to += a * x.
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_scaled(scalar_t* to, scalar_t a, const scalar_t* x, int64_t width) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const V wide = splat<V>(a);
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    store(to + d, load<V>(to + d) + wide * load<V>(x + d));
  }
  for (; d < width; ++d) to[d] += a * x[d];
}

// `add_rows` of the first kBlock vectors of columns, which stay in registers.
template <int kBytes, int kBlock, typename scalar_t>
MG2L_INLINE void add_columns(scalar_t* to, const scalar_t* weights, const scalar_t* x,
                             int64_t stride, int64_t count) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  V sum[kBlock];
#pragma GCC unroll 4
  for (int v = 0; v < kBlock; ++v) sum[v] = load<V>(to + v * kLanes);
  for (int64_t t = 0; t < count; ++t) {
    const V w = splat<V>(weights[t]);
#pragma GCC unroll 4
    for (int v = 0; v < kBlock; ++v) sum[v] += w * load<V>(x + t * stride + v * kLanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kBlock; ++v) store(to + v * kLanes, sum[v]);
}

// to += sum over the tile of weights[t] * rows[t].
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_rows(scalar_t* to, const scalar_t* weights, const scalar_t* x, int64_t stride,
                          int64_t count, int64_t width) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  int64_t d = 0;
  for (; d + 4 * kLanes <= width; d += 4 * kLanes) {
    add_columns<kBytes, 4>(to + d, weights, x + d, stride, count);
  }
  for (; d + kLanes <= width; d += kLanes) {
    add_columns<kBytes, 1>(to + d, weights, x + d, stride, count);
  }
  if (d == width) return;
  for (int64_t t = 0; t < count; ++t) {
    add_scaled<kBytes>(to + d, weights[t], x + t * stride + d, width - d);
  }
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void exp_row(scalar_t* x, int64_t count, scalar_t shift) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t t = 0; t < count; t += kLanes) {
    store(x + t, exp_lanes<kLanes>(load<V>(x + t) - splat<V>(shift)));
  }
}

// Logits of a tile; -inf where there is no input. The row is padded to whole vectors.
template <int kBytes, typename scalar_t>
MG2L_INLINE void tile_logits(const PoolArrays<scalar_t>& a, int64_t set, const scalar_t* query,
                             int64_t first, int64_t count, scalar_t* logits) {
  for (int64_t t = 0; t < count; ++t) {
    const scalar_t* x = a.x + a.at(set, first + t) * a.sizes.width;
    logits[t] = a.has(set, first + t) ? dot<kBytes>(x, query, a.sizes.width)
                                      : -std::numeric_limits<scalar_t>::infinity();
  }
}

// Whether the logits of all inputs are finite.
template <typename scalar_t>
MG2L_INLINE bool all_finite(const PoolArrays<scalar_t>& a, int64_t set, int64_t first,
                            int64_t count, const scalar_t* logits) {
  scalar_t zero = 0;  // x - x is 0, or NaN
  if (a.mask == nullptr) {
    for (int64_t t = 0; t < count; ++t) zero += logits[t] - logits[t];
  } else {
    for (int64_t t = 0; t < count; ++t) {
      zero += a.has(set, first + t) ? logits[t] - logits[t] : scalar_t(0);
    }
  }
  return zero == 0;
}

// to += sum over the tile of weights[t] * x[t]; inputs that do not exist are not looked at.
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_inputs(const PoolArrays<scalar_t>& a, int64_t set, int64_t first,
                            int64_t count, const scalar_t* weights, scalar_t* to) {
  const int64_t width = a.sizes.width, stride = a.sizes.inner * width;
  if (a.mask == nullptr) {
    add_rows<kBytes>(to, weights, a.x + a.at(set, first) * width, stride, count, width);
    return;
  }
  for (int64_t t = 0; t < count; ++t) {
    if (a.has(set, first + t)) {
      add_scaled<kBytes>(to, weights[t], a.x + a.at(set, first + t) * width, width);
    }
  }
}

// What is left of an input that does not exist, after an exponential that never gives 0.
template <typename scalar_t>
MG2L_INLINE void drop_missing(const PoolArrays<scalar_t>& a, int64_t set, int64_t first,
                              int64_t count, scalar_t* weights) {
  if (a.mask == nullptr) return;
  for (int64_t t = 0; t < count; ++t) weights[t] = a.has(set, first + t) ? weights[t] : 0;
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void pool_set(const PoolArrays<scalar_t>& a, int64_t set, int64_t head,
                          scalar_t* pooled, scalar_t* lse, scalar_t* weights) {
  constexpr scalar_t kNone = -std::numeric_limits<scalar_t>::infinity();
  const int64_t width = a.sizes.width, length = a.sizes.length;
  const scalar_t* query = a.query + head * width;
  alignas(64) scalar_t tile[kTile] = {};
  scalar_t running_max = kNone, running_sum = 0;
  std::fill(pooled, pooled + width, scalar_t(0));
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first);
    tile_logits<kBytes>(a, set, query, first, count, tile);
    if (!all_finite(a, set, first, count, tile)) {
      constexpr scalar_t kNaN = std::numeric_limits<scalar_t>::quiet_NaN();
      std::fill(pooled, pooled + width, kNaN);
      *lse = kNaN;
      for (int64_t t = 0; weights && t < length; ++t) weights[t] = a.has(set, t) ? kNaN : 0;
      return;
    }
    if (weights) std::copy(tile, tile + count, weights + first);
    scalar_t tile_max = running_max;
    for (int64_t t = 0; t < count; ++t) tile_max = std::max(tile_max, tile[t]);
    if (tile_max == kNone) continue;
    exp_row<kBytes>(tile, kTile, tile_max);
    drop_missing(a, set, first, count, tile);
    if (tile_max > running_max) {
      const scalar_t rescale = running_sum > 0 ? std::exp(running_max - tile_max) : scalar_t(0);
      for (int64_t d = 0; d < width; ++d) pooled[d] *= rescale;
      running_sum *= rescale;
      running_max = tile_max;
    }
    for (int64_t t = 0; t < count; ++t) running_sum += tile[t];
    add_inputs<kBytes>(a, set, first, count, tile, pooled);
  }
  *lse = running_sum > 0 ? running_max + std::log(running_sum) : kNone;
  const scalar_t scale = running_sum > 0 ? 1 / running_sum : scalar_t(0);
  for (int64_t d = 0; d < width; ++d) pooled[d] *= scale;
  if (weights) {
    for (int64_t t = 0; t < length; ++t) {
      weights[t] = a.has(set, t) ? std::exp(weights[t] - *lse) : scalar_t(0);
    }
  }
}

// Adds one head's part to grad_x, which the first head writes, and to grad_query.
template <int kBytes, typename scalar_t>
MG2L_INLINE void pool_set_backward(const PoolArrays<scalar_t>& a, int64_t set, int64_t head,
                                   const scalar_t* pooled, scalar_t lse, const scalar_t* grad,
                                   scalar_t* grad_x, scalar_t* grad_query) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const int64_t width = a.sizes.width, length = a.sizes.length;
  const scalar_t* query = a.query + head * width;
  const bool empty = lse == -std::numeric_limits<scalar_t>::infinity();
  const scalar_t delta = dot<kBytes>(grad, pooled, width);
  alignas(64) scalar_t weights[kTile] = {}, slopes[kTile] = {};
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first);
    if (std::isnan(lse)) {
      for (int64_t t = 0; t < count; ++t) weights[t] = a.has(set, first + t) ? lse : 0;
    } else if (!empty) {
      tile_logits<kBytes>(a, set, query, first, count, weights);
      exp_row<kBytes>(weights, kTile, lse);
      drop_missing(a, set, first, count, weights);
    }
    for (int64_t t = 0; t < count; ++t) {
      const scalar_t* x = a.x + a.at(set, first + t) * width;
      scalar_t* to = grad_x + a.at(set, first + t) * width;
      if (!a.has(set, first + t)) {
        slopes[t] = 0;
        if (head == 0) std::fill(to, to + width, scalar_t(0));
        continue;
      }
      slopes[t] = weights[t] * (dot<kBytes>(x, grad, width) - delta);
      const V w = splat<V>(weights[t]), s = splat<V>(slopes[t]);
      int64_t d = 0;
      for (; d + kLanes <= width; d += kLanes) {
        V sum = w * load<V>(grad + d) + s * load<V>(query + d);
        if (head > 0) sum += load<V>(to + d);
        store(to + d, sum);
      }
      for (; d < width; ++d) {
        to[d] = (head > 0 ? to[d] : 0) + weights[t] * grad[d] + slopes[t] * query[d];
      }
    }
    add_inputs<kBytes>(a, set, first, count, slopes, grad_query + head * width);
  }
}

// Sets per task so that a task is worth a thread.
template <typename scalar_t>
int64_t grain(const PoolArrays<scalar_t>& a) {
  const int64_t work = std::max<int64_t>(a.sizes.length * a.sizes.width * a.sizes.heads, 1);
  return std::max<int64_t>(kMinTaskWork / work, 1);
}

template <typename scalar_t>
void pia_pool_kernel(const PoolArrays<scalar_t>& a, scalar_t* pooled, scalar_t* lse,
                     scalar_t* weights) {
  const int64_t heads = a.sizes.heads;
  torch::stable::parallel_for(0, a.sets(), grain(a), [&](int64_t begin, int64_t end) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t set = begin; set < end; ++set) {
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t row = set * heads + head;
          pool_set<bytes>(a, set, head, pooled + row * a.sizes.width, lse + row,
                          weights ? weights + row * a.sizes.length : nullptr);
        }
      }
    });
  });
}

// Parts of the sets are summed in order, and the parts added in order: the same however many
// threads there are.
template <typename scalar_t>
void pia_pool_backward_kernel(const PoolArrays<scalar_t>& a, const scalar_t* pooled,
                              const scalar_t* lse, const scalar_t* grad, scalar_t* grad_x,
                              scalar_t* grad_query) {
  const int64_t heads = a.sizes.heads, width = a.sizes.width, sets = a.sets();
  const int64_t parts = std::max<int64_t>(std::min((sets + grain(a) - 1) / grain(a), kParts), 1);
  std::vector<scalar_t> partial(parts * heads * width, 0);
  if (heads == 0) std::fill(grad_x, grad_x + sets * a.sizes.length * width, scalar_t(0));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t set = part * sets / parts; set < (part + 1) * sets / parts; ++set) {
          for (int64_t head = 0; head < heads; ++head) {
            const int64_t row = set * heads + head;
            pool_set_backward<bytes>(a, set, head, pooled + row * width, lse[row],
                                     grad + row * width, grad_x,
                                     partial.data() + part * heads * width);
          }
        }
      }
    });
  });
  std::fill(grad_query, grad_query + heads * width, scalar_t(0));
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < heads * width; ++i) grad_query[i] += partial[part * heads * width + i];
  }
}

template <typename scalar_t>
PoolArrays<scalar_t> pool_arrays(const PoolSizes& sizes, const Tensor& x, const Tensor& query,
                                 const std::optional<Tensor>& mask) {
  return {sizes, data<scalar_t>(x), data<scalar_t>(query), data_or_null<uint8_t>(mask)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pia_pool_cpu(const Tensor& x_, const Tensor& query_,
                                                const std::optional<Tensor>& mask_,
                                                bool return_weights) {
  const PoolSizes sizes = check_pia_pool(x_, query_, mask_);
  const Tensor x = as_contiguous(x_), query = as_contiguous(query_);
  std::optional<Tensor> mask;
  if (mask_) mask = as_contiguous(*mask_);
  Tensor pooled = allocate(x, {sizes.outer, sizes.inner, sizes.heads, sizes.width});
  Tensor lse = allocate(x, {sizes.outer, sizes.inner, sizes.heads});
  Tensor weights = allocate(x, {return_weights ? sizes.outer : 0, sizes.inner, sizes.heads,
                                return_weights ? sizes.length : 0});
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    pia_pool_kernel(pool_arrays<scalar_t>(sizes, x, query, mask), data<scalar_t>(pooled),
                    data<scalar_t>(lse), return_weights ? data<scalar_t>(weights) : nullptr);
  });
  return {pooled, lse, weights};
}

std::tuple<Tensor, Tensor> pia_pool_backward_cpu(const Tensor& grad_, const Tensor& x_,
                                                 const Tensor& query_,
                                                 const std::optional<Tensor>& mask_,
                                                 const Tensor& pooled_, const Tensor& lse_) {
  const PoolSizes sizes = check_pia_pool_backward(grad_, x_, query_, mask_, pooled_, lse_);
  const Tensor x = as_contiguous(x_), query = as_contiguous(query_), grad = as_contiguous(grad_);
  const Tensor pooled = as_contiguous(pooled_), lse = as_contiguous(lse_);
  std::optional<Tensor> mask;
  if (mask_) mask = as_contiguous(*mask_);
  Tensor grad_x = allocate_like(x);
  Tensor grad_query = allocate(x, sizes_of(query));
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    pia_pool_backward_kernel(pool_arrays<scalar_t>(sizes, x, query, mask), data<scalar_t>(pooled),
                             data<scalar_t>(lse), data<scalar_t>(grad), data<scalar_t>(grad_x),
                             data<scalar_t>(grad_query));
  });
  return {grad_x, grad_query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("pia_pool", TORCH_BOX(&mg2l::pia_pool_cpu));
  m.impl("pia_pool_backward", TORCH_BOX(&mg2l::pia_pool_backward_cpu));
}
