// Binds the CUDA kernels of `pairwise_lse` and `pairwise_lse_backward` to torch; compiled by the
// host compiler. `positive` lies on the device and is not checked here: where it names no key the
// results of the query are NaN.
//
// Many dot products are made by torch (cuBLAS), some queries with all keys at a time, and the
// kernels read them; every row is whole then, and its log-sum-exp need not be put together.
#include <atomic>

#include "../pairwise_lse.h"
#include "device.h"
#include "launchers.h"
#include "pairwise_lse_layout.h"

namespace mg2l {
namespace {

using torch::stable::matmul;
using torch::stable::narrow;
using torch::stable::transpose;

constexpr int64_t kMaxGroups = 65535;  // blocks along the second axis of a grid

std::atomic<int64_t> products_from{kProductsFrom};

void check_groups(const PairSizes& sizes) {
  MG2L_CHECK(sizes.groups <= kMaxGroups, "pairwise_lse: there must be at most ", kMaxGroups,
             " groups on CUDA, got ", sizes.groups);
}

// Gaussians are no products: their expansion into products cancels where they are narrow.
bool by_products(const PairSizes& sizes, bool gaussian) {
  return !gaussian && sizes.queries * sizes.keys >= products_from.load();
}

// Row g of [G, rows, width], rows [first, first + count): a view.
Tensor rows_of(const Tensor& tensor, int64_t group, int64_t first, int64_t count) {
  Tensor row = narrow(const_cast<Tensor&>(tensor), 0, group, 1);
  return narrow(row, 1, first, count);
}

// to = a b
void multiply_into(const Tensor& to, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(to)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  static_cast<void>(torch::stable::detail::to<Tensor>(stack[0]));  // ours to release
}

// Calls body(group, first, count) for each chunk of queries.
template <typename Body>
void for_chunks(const PairSizes& sizes, const Body& body) {
  const int64_t most = product_queries(sizes.queries, sizes.keys);
  for (int64_t group = 0; group < sizes.groups; ++group) {
    for (int64_t first = 0; first < sizes.queries; first += most) {
      body(group, first, std::min(most, sizes.queries - first));
    }
  }
}

// The arguments of one chunk, whose products are given.
template <typename scalar_t>
PairArgs<scalar_t> chunk_args(PairArgs<scalar_t> args, int64_t group, int64_t first, int64_t count,
                              const Tensor& products) {
  const int64_t row = group * args.queries + first;
  args.query += row * args.width;
  args.key += group * args.keys * args.width;
  args.positive += row;
  if (args.query_labels) args.query_labels += row;
  if (args.key_labels) args.key_labels += group * args.keys;
  if (args.mask) args.mask += row * args.keys;
  args.groups = 1;
  args.queries = count;
  args.products = data<scalar_t>(products);
  return args;
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

// Room for what the splits of `rows` queries leave, none for one split.
struct PairPartials {
  Tensor sums, counts;

  PairPartials(const Tensor& like, int64_t rows, int64_t splits)
      : sums(allocate(like, {splits > 1 ? rows : 0, splits, 3})),
        counts(allocate(like, {splits > 1 ? rows : 0, splits, 2}, ScalarType::Long)) {}
};

template <typename Launcher, typename scalar_t>
void launch_forward(Launcher launcher, const PairArgs<scalar_t>& in, int64_t splits,
                    PairPartials& partials, PairOutputs& r, int64_t row, void* stream) {
  PairForwardArgs<scalar_t> args{};
  args.in = in;
  args.splits = splits;
  args.partial = data<scalar_t>(partials.sums);
  args.partial_counts = data<int64_t>(partials.counts);
  args.lse = data<scalar_t>(r.lse) + row;
  args.lse_negatives = data<scalar_t>(r.lse_negatives) + row;
  args.mean = data<scalar_t>(r.mean) + row;
  args.positive_score = data<scalar_t>(r.positive_score) + row;
  args.negatives = data<int64_t>(r.negatives) + row;
  args.rank = data<int64_t>(r.rank) + row;
  check_launch("pairwise_lse", launcher(&args, stream));
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
  const bool products = by_products(sizes, std.has_value());
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    const auto in = pair_args<scalar_t>(sizes, t, scale, clip, offsets);
    void* stream = current_stream(device);
    if (!products) {
      const int64_t splits = pair_splits(sizes.groups, sizes.queries, sizes.keys);
      PairPartials partials(queries, sizes.groups * sizes.queries, splits);
      launch_forward(launcher, in, splits, partials, r, 0, stream);
      return;
    }
    for_chunks(sizes, [&](int64_t group, int64_t first, int64_t count) {
      const Tensor key = rows_of(t.keys, group, 0, sizes.keys);
      const Tensor made =
          as_contiguous(matmul(rows_of(t.queries, group, first, count), transpose(key, 1, 2)));
      const int64_t splits = pair_splits(1, count, sizes.keys);
      PairPartials partials(queries, count, splits);
      launch_forward(launcher, chunk_args(in, group, first, count, made), splits, partials, r,
                     group * sizes.queries + first, stream);
    });
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
  // Of all queries, or of those from a row on.
  const auto gradients = [&](const auto& in, int64_t row) {
    using scalar_t = std::decay_t<decltype(in.scale)>;
    PairGradients<scalar_t> of{};
    of.in = in;
    of.lse = data<scalar_t>(lse) + row;
    of.lse_negatives = data<scalar_t>(lse_negatives) + row;
    of.negatives = data<int64_t>(negatives) + row;
    of.grad_lse = data<scalar_t>(grad_lse) + row;
    of.grad_lse_negatives = data<scalar_t>(grad_lse_negatives) + row;
    of.grad_mean = data<scalar_t>(grad_mean) + row;
    of.grad_positive = data<scalar_t>(grad_positive) + row;
    return of;
  };
  const auto launch = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    PairBackwardArgs<scalar_t> args{};
    args.of = gradients(pair_args<scalar_t>(sizes, t, scale, clip, offsets), 0);
    args.query_splits = pair_splits(sizes.groups, sizes.queries, sizes.keys);
    args.key_splits = pair_splits(sizes.groups, sizes.keys, sizes.queries);
    const auto parts = [&](const Tensor& of, int64_t splits, bool wanted) {
      const int64_t held = wanted && splits > 1 ? splits : 0;
      return allocate(queries, {held, of.size(0), of.size(1), of.size(2)});
    };
    Tensor partial_query = parts(queries, args.query_splits, true);
    Tensor partial_key = parts(keys, args.key_splits, true);
    Tensor partial_std = parts(keys, args.key_splits, std.has_value());
    args.partial_query = data<scalar_t>(partial_query);
    args.partial_key = data<scalar_t>(partial_key);
    args.partial_std = data<scalar_t>(partial_std);
    args.grad_query = data<scalar_t>(grad.queries);
    args.grad_key = data<scalar_t>(grad.keys);
    if (std) args.grad_std = data<scalar_t>(grad.std);
    check_launch("pairwise_lse_backward", launcher(&args, current_stream(device)));
  };
  const auto launch_products = [&](auto launcher, auto zero) {
    using scalar_t = decltype(zero);
    const auto in = pair_args<scalar_t>(sizes, t, scale, clip, offsets);
    Tensor sum = grad.keys;  // over a group's chunks
    for_chunks(sizes, [&](int64_t group, int64_t first, int64_t count) {
      const Tensor query = rows_of(t.queries, group, first, count);
      const Tensor key = rows_of(t.keys, group, 0, sizes.keys);
      Tensor made = as_contiguous(matmul(query, transpose(key, 1, 2)));
      PairProductsArgs<scalar_t> args{};
      args.of = gradients(chunk_args(in, group, first, count, made), group * sizes.queries + first);
      args.grad_products = data<scalar_t>(made);
      check_launch("pairwise_lse_backward", launcher(&args, current_stream(device)));
      multiply_into(rows_of(grad.queries, group, first, count), made, key);
      const Tensor part = matmul(transpose(made, 1, 2), query);
      sum = first == 0 ? part : torch::stable::subtract(sum, part, -1.0);
      if (first + count < sizes.queries) return;
      Tensor to_key = rows_of(grad.keys, group, 0, sizes.keys);
      torch::stable::copy_(to_key, sum);
    });
  };
  if (by_products(sizes, std.has_value())) {
    for_launcher(queries.scalar_type(), mg2l_pairwise_lse_products_float,
                 mg2l_pairwise_lse_products_double, launch_products);
  } else {
    for_launcher(queries.scalar_type(), mg2l_pairwise_lse_backward_float,
                 mg2l_pairwise_lse_backward_double, launch);
  }
  return {grad.queries, grad.keys, grad.std};
}

}  // namespace mg2l

// From how many scores of a group on products are used, for measurements that compare the two ways;
// returns what it was.
extern "C" __attribute__((visibility("default"))) int64_t
mg2l_pairwise_products_from(int64_t scores) {
  return mg2l::products_from.exchange(scores);
}

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("pairwise_lse", TORCH_BOX(&mg2l::pairwise_lse_cuda));
  m.impl("pairwise_lse_backward", TORCH_BOX(&mg2l::pairwise_lse_backward_cuda));
}
