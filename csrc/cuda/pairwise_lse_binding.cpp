// Binds the CUDA kernels of `pairwise_lse` and `pairwise_lse_backward` to torch; compiled by the
// host compiler. `positive` lies on the device and is not checked here: where it names no key the
// results of the query are NaN.
#include "../pairwise_lse.h"
#include "device.h"
#include "launchers.h"

namespace mg2l {
namespace {

constexpr int64_t kMaxGroups = 65535;  // blocks along the second axis of a grid

void check_groups(const PairSizes& sizes) {
  MG2L_CHECK(sizes.groups <= kMaxGroups, "pairwise_lse: there must be at most ", kMaxGroups,
             " groups on CUDA, got ", sizes.groups);
}

template <typename scalar_t>
PairArgs<scalar_t> pair_args(const PairSizes& sizes, const PairTensors& tensors, double scale,
                             std::optional<double> clip, Tensor& offsets) {
  PairArgs<scalar_t> args{};
  args.groups = sizes.groups;
  args.queries = sizes.queries;
  args.keys = sizes.keys;
  args.width = sizes.width;
  args.scale = static_cast<scalar_t>(scale);
  args.clip = static_cast<scalar_t>(clip.value_or(0));
  args.query = data<scalar_t>(tensors.queries);
  args.key = data<scalar_t>(tensors.keys);
  args.std = data_or_null<scalar_t>(tensors.std);
  args.positive = data<int64_t>(tensors.positive);
  args.query_labels = data_or_null<int64_t>(tensors.query_labels);
  args.key_labels = data_or_null<int64_t>(tensors.key_labels);
  args.mask = data_or_null<uint8_t>(tensors.mask);
  args.offsets = data<scalar_t>(offsets);
  return args;
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
  PairOutputs r = pair_outputs(queries, sizes);
  Tensor offsets = allocate(queries, {sizes.groups, std ? sizes.keys : 0});
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    PairForwardArgs<scalar_t> args{};
    args.in = pair_args<scalar_t>(sizes, t, scale, clip, offsets);
    args.lse = data<scalar_t>(r.lse);
    args.lse_negatives = data<scalar_t>(r.lse_negatives);
    args.mean = data<scalar_t>(r.mean);
    args.positive_score = data<scalar_t>(r.positive_score);
    args.negatives = data<int64_t>(r.negatives);
    args.rank = data<int64_t>(r.rank);
    check_launch("pairwise_lse", launcher(&args, current_stream(device)));
  };
  for_launcher(queries.scalar_type(), mg2l_pairwise_lse_float, mg2l_pairwise_lse_double, launch);
  return {r.lse, r.lse_negatives, r.mean, r.positive_score, r.negatives, r.rank};
}

std::tuple<Tensor, Tensor, Tensor> pairwise_lse_backward_cuda(
    const Tensor& grad_lse_, const Tensor& grad_lse_negatives_, const Tensor& grad_mean_,
    const Tensor& grad_positive_, const Tensor& queries, const Tensor& keys, const Tensor& positive,
    double scale, const std::optional<Tensor>& std, const std::optional<Tensor>& query_labels,
    const std::optional<Tensor>& key_labels, const std::optional<Tensor>& mask,
    std::optional<double> clip, const Tensor& lse_, const Tensor& lse_negatives_,
    const Tensor& negatives_) {
  const PairSizes sizes = check_pairwise_lse_backward(
      grad_lse_, grad_lse_negatives_, grad_mean_, grad_positive_, queries, keys, positive, scale,
      std, query_labels, key_labels, mask, clip, lse_, lse_negatives_, negatives_);
  check_groups(sizes);
  const auto device = queries.get_device_index();
  const DeviceGuard guard(device);
  const PairTensors t(queries, keys, positive, std, query_labels, key_labels, mask);
  const Tensor grad_lse = as_contiguous(grad_lse_),
               grad_lse_negatives = as_contiguous(grad_lse_negatives_);
  const Tensor grad_mean = as_contiguous(grad_mean_), grad_positive = as_contiguous(grad_positive_);
  const Tensor lse = as_contiguous(lse_), lse_negatives = as_contiguous(lse_negatives_);
  const Tensor negatives = as_contiguous(negatives_);
  PairBackwardOutputs grad(queries, keys, std.has_value());
  Tensor offsets = allocate(queries, {sizes.groups, std ? sizes.keys : 0});
  if (sizes.queries == 0) return {grad.queries, grad.keys, grad.std};
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    PairBackwardArgs<scalar_t> args{};
    args.in = pair_args<scalar_t>(sizes, t, scale, clip, offsets);
    args.lse = data<scalar_t>(lse);
    args.lse_negatives = data<scalar_t>(lse_negatives);
    args.negatives = data<int64_t>(negatives);
    args.grad_lse = data<scalar_t>(grad_lse);
    args.grad_lse_negatives = data<scalar_t>(grad_lse_negatives);
    args.grad_mean = data<scalar_t>(grad_mean);
    args.grad_positive = data<scalar_t>(grad_positive);
    args.grad_query = data<scalar_t>(grad.queries);
    args.grad_key = data<scalar_t>(grad.keys);
    if (std) args.grad_std = data<scalar_t>(grad.std);
    check_launch("pairwise_lse_backward", launcher(&args, current_stream(device)));
  };
  for_launcher(queries.scalar_type(), mg2l_pairwise_lse_backward_float,
               mg2l_pairwise_lse_backward_double, launch);
  return {grad.queries, grad.keys, grad.std};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("pairwise_lse", TORCH_BOX(&mg2l::pairwise_lse_cuda));
  m.impl("pairwise_lse_backward", TORCH_BOX(&mg2l::pairwise_lse_backward_cuda));
}
