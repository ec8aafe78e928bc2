// Binds the CUDA kernels of `pairwise_lse` and `pairwise_lse_backward` to torch; compiled by the
// host compiler. `positive` lies on the device and is not judged here: where it names no key the
// results of the query are NaN.
#include "../pairwise_lse.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

constexpr int64_t kMostGroups = 65535;  // blocks along the second axis of a grid

void check_groups(const PairSizes& sizes) {
  MG2L_CHECK(sizes.groups <= kMostGroups, "pairwise_lse: there must be at most ", kMostGroups,
             " groups on CUDA, got ", sizes.groups);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pairwise_lse_cuda(
    const Tensor& queries, const Tensor& keys, const Tensor& positive, double scale,
    const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip) {
  const PairSizes sizes =
      check_pairwise_lse(queries, keys, positive, scale, std, query_labels, key_labels, mask, clip);
  check_groups(sizes);
  const auto device = queries.get_device_index();
  const DeviceGuard guard(device);
  const PairTensors t(queries, keys, positive, std, query_labels, key_labels, mask);
  const Sizes shape{sizes.groups, sizes.queries};
  const auto result = [&] { return allocate(queries, shape); };
  Tensor lse = result(), lse_negatives = result(), mean = result(), own = result();
  Tensor negatives = allocate(queries, shape, ScalarType::Long);
  Tensor rank = allocate(queries, shape, ScalarType::Long);
  Tensor offsets = allocate(queries, {sizes.groups, std ? sizes.keys : 0});
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    check_launch(
        "pairwise_lse",
        launcher(sizes.groups, sizes.queries, sizes.keys, sizes.width, scale, clip.value_or(0),
                 data<scalar_t>(std::as_const(t.queries)), data<scalar_t>(std::as_const(t.keys)),
                 data_or_null<scalar_t>(t.std), data<int64_t>(std::as_const(t.positive)),
                 data_or_null<int64_t>(t.query_labels), data_or_null<int64_t>(t.key_labels),
                 data_or_null<uint8_t>(t.mask), data<scalar_t>(offsets), data<scalar_t>(lse),
                 data<scalar_t>(lse_negatives), data<scalar_t>(mean), data<scalar_t>(own),
                 data<int64_t>(negatives), data<int64_t>(rank), current_stream(device)));
  };
  if (queries.scalar_type() == ScalarType::Float) {
    launch(mg2l_pairwise_lse_float, 0.0F);
  } else {
    launch(mg2l_pairwise_lse_double, 0.0);
  }
  return {lse, lse_negatives, mean, own, negatives, rank};
}

std::tuple<Tensor, Tensor, Tensor> pairwise_lse_backward_cuda(
    const Tensor& to_lse_, const Tensor& to_negatives_, const Tensor& to_mean_,
    const Tensor& to_positive_, const Tensor& queries, const Tensor& keys, const Tensor& positive,
    double scale, const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip, const Tensor& lse_, const Tensor& lse_negatives_,
    const Tensor& negatives_) {
  const PairSizes sizes = check_pairwise_lse_backward(
      to_lse_, to_negatives_, to_mean_, to_positive_, queries, keys, positive, scale, std,
      query_labels, key_labels, mask, clip, lse_, lse_negatives_, negatives_);
  check_groups(sizes);
  const auto device = queries.get_device_index();
  const DeviceGuard guard(device);
  const PairTensors t(queries, keys, positive, std, query_labels, key_labels, mask);
  const Tensor to_lse = as_contiguous(to_lse_), to_negatives = as_contiguous(to_negatives_);
  const Tensor to_mean = as_contiguous(to_mean_), to_positive = as_contiguous(to_positive_);
  const Tensor lse = as_contiguous(lse_), lse_negatives = as_contiguous(lse_negatives_);
  const Tensor negatives = as_contiguous(negatives_);
  Tensor grad_queries = allocate(queries, sizes_of(queries));
  Tensor grad_keys = allocate(keys, sizes_of(keys));
  Tensor grad_std = allocate(keys, std ? sizes_of(keys) : Sizes{0});
  Tensor offsets = allocate(queries, {sizes.groups, std ? sizes.keys : 0});
  if (sizes.queries == 0) {
    torch::stable::zero_(grad_keys);
    torch::stable::zero_(grad_std);
    return {grad_queries, grad_keys, grad_std};
  }
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    check_launch(
        "pairwise_lse_backward",
        launcher(sizes.groups, sizes.queries, sizes.keys, sizes.width, scale, clip.value_or(0),
                 data<scalar_t>(std::as_const(t.queries)), data<scalar_t>(std::as_const(t.keys)),
                 data_or_null<scalar_t>(t.std), data<int64_t>(std::as_const(t.positive)),
                 data_or_null<int64_t>(t.query_labels), data_or_null<int64_t>(t.key_labels),
                 data_or_null<uint8_t>(t.mask), data<scalar_t>(offsets), data<scalar_t>(lse),
                 data<scalar_t>(lse_negatives), data<int64_t>(negatives), data<scalar_t>(to_lse),
                 data<scalar_t>(to_negatives), data<scalar_t>(to_mean), data<scalar_t>(to_positive),
                 data<scalar_t>(grad_queries), data<scalar_t>(grad_keys),
                 std ? data<scalar_t>(grad_std) : nullptr, current_stream(device)));
  };
  if (queries.scalar_type() == ScalarType::Float) {
    launch(mg2l_pairwise_lse_backward_float, 0.0F);
  } else {
    launch(mg2l_pairwise_lse_backward_double, 0.0);
  }
  return {grad_queries, grad_keys, grad_std};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("pairwise_lse", TORCH_BOX(&mg2l::pairwise_lse_cuda));
  m.impl("pairwise_lse_backward", TORCH_BOX(&mg2l::pairwise_lse_backward_cuda));
}
