// Binds the CUDA kernels of `pia_pool` and `pia_pool_backward` to torch; compiled by the host
// compiler.
#include <limits>
#include <tuple>
#include <utility>

#include "../pia_pool.h"
#include "device.h"
#include "launchers.h"
#include "pia_pool_layout.h"

namespace mg2l {
namespace {

// A grid has so many blocks at most; one works on a row, or on 256 elements of x.
void check_grid(const PoolSizes& sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t sets = sizes.outer * sizes.inner;
  MG2L_CHECK(sets * sizes.heads <= kMost, "pia_pool: sets times heads must be at most ", kMost,
             " on CUDA, got ", sets * sizes.heads);
  MG2L_CHECK(sizes.heads <= 65535, "pia_pool: heads must be at most 65535 on CUDA, got ",
             sizes.heads);
  MG2L_CHECK(sets * sizes.length * sizes.width / 256 < kMost,
             "pia_pool: x is too large for CUDA: ", sets * sizes.length * sizes.width, " elements");
}

template <typename scalar_t>
PoolArgs<scalar_t> pool_args(const PoolSizes& sizes, const Tensor& x, const Tensor& query,
                             const std::optional<Tensor>& mask) {
  PoolArgs<scalar_t> args{};
  args.outer = sizes.outer;
  args.length = sizes.length;
  args.inner = sizes.inner;
  args.width = sizes.width;
  args.heads = sizes.heads;
  args.x = data<scalar_t>(x);
  args.query = data<scalar_t>(query);
  args.mask = data_or_null<uint8_t>(mask);
  return args;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pia_pool_cuda(const Tensor& x_, const Tensor& query_,
                                                 const std::optional<Tensor>& mask_,
                                                 bool return_weights) {
  const PoolSizes sizes = check_pia_pool(x_, query_, mask_);
  check_grid(sizes);
  const auto device = x_.get_device_index();
  const DeviceGuard guard(device);
  const Tensor x = as_contiguous(x_), query = as_contiguous(query_);
  std::optional<Tensor> mask;
  if (mask_) mask = as_contiguous(*mask_);
  Tensor pooled = allocate(x, {sizes.outer, sizes.inner, sizes.heads, sizes.width});
  Tensor lse = allocate(x, {sizes.outer, sizes.inner, sizes.heads});
  Tensor weights = allocate(x, {sizes.outer, sizes.inner, sizes.heads, sizes.length});
  const int64_t rows = sizes.outer * sizes.inner * sizes.heads;
  const int64_t splits = pool_splits(rows, sizes.length);
  Tensor partial = allocate(x, {splits > 1 ? rows * splits : 0, pool_partial_width(sizes.width)});
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    PoolForwardArgs<scalar_t> args{};
    args.in = pool_args<scalar_t>(sizes, x, query, mask);
    args.pooled = data<scalar_t>(pooled);
    args.lse = data<scalar_t>(lse);
    args.weights = data<scalar_t>(weights);
    args.partial = data<scalar_t>(partial);
    check_launch("pia_pool", launcher(&args, current_stream(device)));
  };
  for_launcher(x.scalar_type(), mg2l_pia_pool_float, mg2l_pia_pool_double, launch);
  if (!return_weights) weights = allocate(x, {0, sizes.inner, sizes.heads, 0});
  return {pooled, lse, weights};
}

std::tuple<Tensor, Tensor> pia_pool_backward_cuda(const Tensor& grad_, const Tensor& x_,
                                                  const Tensor& query_,
                                                  const std::optional<Tensor>& mask_,
                                                  const Tensor& pooled_, const Tensor& lse_) {
  const PoolSizes sizes = check_pia_pool_backward(grad_, x_, query_, mask_, pooled_, lse_);
  check_grid(sizes);
  const auto device = x_.get_device_index();
  const DeviceGuard guard(device);
  const Tensor x = as_contiguous(x_), query = as_contiguous(query_), grad = as_contiguous(grad_);
  const Tensor pooled = as_contiguous(pooled_), lse = as_contiguous(lse_);
  std::optional<Tensor> mask;
  if (mask_) mask = as_contiguous(*mask_);
  const Sizes rows{sizes.outer, sizes.inner, sizes.heads, sizes.length};
  Tensor weights = allocate(x, rows);
  Tensor grad_logits = allocate(x, rows);
  Tensor partial = allocate(x, {kQueryParts, sizes.heads, sizes.width});
  Tensor grad_x = allocate_like(x);
  Tensor grad_query = allocate(x, sizes_of(query));
  if (sizes.heads == 0) {
    torch::stable::zero_(grad_x);
    return {grad_x, grad_query};
  }
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    PoolBackwardArgs<scalar_t> args{};
    args.in = pool_args<scalar_t>(sizes, x, query, mask);
    args.grad = data<scalar_t>(grad);
    args.pooled = data<scalar_t>(pooled);
    args.lse = data<scalar_t>(lse);
    args.weights = data<scalar_t>(weights);
    args.grad_logits = data<scalar_t>(grad_logits);
    args.partial = data<scalar_t>(partial);
    args.grad_x = data<scalar_t>(grad_x);
    args.grad_query = data<scalar_t>(grad_query);
    check_launch("pia_pool_backward", launcher(&args, current_stream(device)));
  };
  for_launcher(x.scalar_type(), mg2l_pia_pool_backward_float, mg2l_pia_pool_backward_double,
               launch);
  return {grad_x, grad_query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("pia_pool", TORCH_BOX(&mg2l::pia_pool_cuda));
  m.impl("pia_pool_backward", TORCH_BOX(&mg2l::pia_pool_backward_cuda));
}
