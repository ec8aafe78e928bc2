// Binds the CUDA kernels of `encode_context` and `encode_context_backward` to torch; compiled by
// the host compiler.
#include <limits>
#include <tuple>
#include <vector>

#include "../encode_context.h"
#include "device.h"
#include "encode_context_layout.h"
#include "launchers.h"

namespace mg2l {
namespace {

static_assert(kMaxParameters == kMaxLayers + 1);

// The launchers of a dtype: what contexts and parameters are, and what sums are.
#define MG2L_ENCODE_LAUNCHERS_OF(name, input, sum)                        \
  struct Encode_##name {                                                  \
    using input_t = input;                                                \
    using scalar_t = sum;                                                 \
    static constexpr auto forward = mg2l_encode_context_##name;           \
    static constexpr auto backward = mg2l_encode_context_backward_##name; \
    static constexpr auto pack = mg2l_encode_context_pack_##name;         \
    static constexpr auto unpack = mg2l_encode_context_unpack_##name;     \
  };
MG2L_ENCODE_LAUNCHERS_OF(float, float, float)
MG2L_ENCODE_LAUNCHERS_OF(double, double, double)
MG2L_ENCODE_LAUNCHERS_OF(bfloat16, Bf16, float)

template <typename Body>
void for_launchers(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) {
    body(Encode_float{});
  } else if (dtype == ScalarType::Double) {
    body(Encode_double{});
  } else {
    body(Encode_bfloat16{});
  }
}

// What a GPU takes: a grid has so many blocks, a tile must fit into shared memory.
void check_encode_cuda(const EncodeSizes& sizes, ScalarType dtype, bool backward) {
  constexpr const char* op = "encode_context";
  const auto layers = static_cast<int64_t>(sizes.units.size());
  MG2L_CHECK(layers <= kMaxLayers, op, ": at most ", kMaxLayers,
             " hidden layers are supported on CUDA, got ", layers);
  const int64_t per_row = shared_per_row(sizes.features, layers, sizes.units.data(), backward);
  const int64_t bytes = dtype == ScalarType::Double ? 8 : 4;
  const int64_t limit = kSharedBytes / bytes / (kQuad + 1);
  MG2L_CHECK(per_row <= limit, op, ": features and hidden layers are too wide for CUDA: ", per_row,
             " numbers per transition", backward ? " in the backward pass" : "", ", at most ",
             limit, " fit; use kernels=torch");
  const int64_t pairs = sizes.contexts * sizes.agents;
  MG2L_CHECK(pairs <= std::numeric_limits<int32_t>::max() / kForwardBlocks, op,
             ": contexts times agents must be at most ",
             std::numeric_limits<int32_t>::max() / kForwardBlocks, " on CUDA, got ", pairs);
  MG2L_CHECK(sizes.weight_sets() <= 65535, op,
             ": agents with their own weights must be at most 65535 on CUDA, got ",
             sizes.weight_sets());
}

// Widths of all layers and of the query, and where they lie; `begin` says where a layer does.
template <typename Begin, typename Args>
void lay_out_parameters(const EncodeSizes& sizes, const Begin& begin, Args& args) {
  const auto layers = static_cast<int64_t>(sizes.units.size());
  args.layers = layers + 1;
  for (int64_t l = 0; l <= layers; ++l) {
    args.units[l] = sizes.units[l < layers ? l : layers - 1];
    args.inputs[l] = l == layers ? 0 : l == 0 ? sizes.features : sizes.units[l - 1];
    args.offset[l] = begin(l);
  }
}

// All layers and the query as the kernels read them.
template <typename Launchers>
Tensor pack(const EncodeSizes& sizes, const EncodeTensors& tensors, void* stream) {
  using input_t = typename Launchers::input_t;
  using scalar_t = typename Launchers::scalar_t;
  const auto layers = static_cast<int64_t>(sizes.units.size());
  EncodePackArgs<input_t, scalar_t> args{};
  args.sets = sizes.weight_sets();
  const auto begin = [&](int64_t layer) {
    return packed_offset(sizes.features, layers, sizes.units.data(), args.sets, layer);
  };
  lay_out_parameters(sizes, begin, args);
  Tensor packed =
      allocate(tensors.context, {begin(layers + 1)}, accumulated(tensors.context.scalar_type()));
  for (int64_t l = 0; l < layers; ++l) {
    args.weight[l] = data<input_t>(tensors.weights[l]);
    args.bias[l] = data<input_t>(tensors.biases[l]);
  }
  args.bias[layers] = data<input_t>(tensors.query);
  args.packed = data<scalar_t>(packed);
  check_launch("encode_context", Launchers::pack(&args, stream));
  return packed;
}

template <typename input_t, typename scalar_t>
EncodeArgs<input_t, scalar_t> encode_args(const EncodeSizes& sizes, const EncodeTensors& tensors,
                                          bool tanh_gelu, const Tensor& packed) {
  EncodeArgs<input_t, scalar_t> args{};
  args.contexts = sizes.contexts;
  args.transitions = sizes.transitions;
  args.agents = sizes.agents;
  args.features = sizes.features;
  args.rows = sizes.rows;
  args.layers = static_cast<int64_t>(sizes.units.size());
  args.own_weights = sizes.own_weights;
  args.tanh_gelu = tanh_gelu;
  args.units = sizes.units.data();
  args.context = data<input_t>(tensors.context);
  args.index = data_or_null<int64_t>(tensors.index);
  args.packed = data<scalar_t>(packed);
  return args;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> encode_context_cuda(
    const Tensor& context_, const std::vector<Tensor>& weights_, const std::vector<Tensor>& biases_,
    const Tensor& query_, const std::optional<Tensor>& index_, bool tanh_gelu, bool bfloat16,
    bool return_weights) {
  const EncodeSizes sizes =
      check_encode_context(context_, weights_, biases_, query_, index_, bfloat16);
  const ScalarType dtype = context_.scalar_type();
  check_encode_cuda(sizes, dtype, false);
  const auto device = context_.get_device_index();
  const DeviceGuard guard(device);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const int64_t splits = context_splits(sizes.contexts * sizes.agents, sizes.transitions);
  EncodeOutputs results(context_, sizes, return_weights);
  Tensor partial = allocate(
      context_, {sizes.contexts * sizes.agents * splits, partial_width(sizes.units.back())},
      accumulated(dtype));
  for_launchers(dtype, [&](auto launchers) {
    using Launchers = decltype(launchers);
    using input_t = typename Launchers::input_t;
    using scalar_t = typename Launchers::scalar_t;
    void* stream = current_stream(device);
    const Tensor packed = pack<Launchers>(sizes, tensors, stream);
    EncodeForwardArgs<input_t, scalar_t> args{};
    args.in = encode_args<input_t, scalar_t>(sizes, tensors, tanh_gelu, packed);
    args.splits = splits;
    args.partial = data<scalar_t>(partial);
    args.pooled = data<scalar_t>(results.pooled);
    args.lse = data<scalar_t>(results.lse);
    if (return_weights) args.weights = data<input_t>(results.weights);
    check_launch("encode_context", Launchers::forward(&args, stream));
  });
  return {results.pooled, results.lse, results.weights};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> encode_context_backward_cuda(
    const Tensor& grad_pooled_, const Tensor& context_, const std::vector<Tensor>& weights_,
    const std::vector<Tensor>& biases_, const Tensor& query_, const std::optional<Tensor>& index_,
    bool tanh_gelu, bool bfloat16, const Tensor& pooled_, const Tensor& lse_, bool want_context) {
  const EncodeSizes sizes =
      check_encode_context_backward(grad_pooled_, context_, weights_, biases_, query_, index_,
                                    bfloat16, pooled_, lse_, want_context);
  const ScalarType dtype = context_.scalar_type();
  check_encode_cuda(sizes, dtype, true);
  const auto device = context_.get_device_index();
  const DeviceGuard guard(device);
  const EncodeTensors tensors(context_, weights_, biases_, query_, index_);
  const Tensor grad_pooled = as_contiguous(grad_pooled_), pooled = as_contiguous(pooled_);
  const Tensor lse = as_contiguous(lse_);
  EncodeBackwardOutputs grad(context_, weights_, biases_, query_, want_context);
  const int64_t sets = sizes.weight_sets();
  const int64_t pairs_of_set = sizes.contexts * (sizes.own_weights ? 1 : sizes.agents);
  const int64_t parts = gradient_parts(sets, pairs_of_set, sizes.transitions);
  const auto layers = static_cast<int64_t>(sizes.units.size());
  const auto begin = [&](int64_t layer) {
    return gradient_offset(sizes.features, layers, sizes.units.data(), layer);
  };
  const int64_t size = begin(layers + 1);
  Tensor partial = allocate(context_, {sets, parts, size}, accumulated(dtype));
  for_launchers(dtype, [&](auto launchers) {
    using Launchers = decltype(launchers);
    using input_t = typename Launchers::input_t;
    using scalar_t = typename Launchers::scalar_t;
    void* stream = current_stream(device);
    const Tensor packed = pack<Launchers>(sizes, tensors, stream);
    EncodeBackwardArgs<input_t, scalar_t> args{};
    args.in = encode_args<input_t, scalar_t>(sizes, tensors, tanh_gelu, packed);
    args.parts = parts;
    args.grad_pooled = data<scalar_t>(grad_pooled);
    args.pooled = data<scalar_t>(pooled);
    args.lse = data<scalar_t>(lse);
    args.partial = data<scalar_t>(partial);
    if (want_context) args.grad_context = data<input_t>(grad.context);
    check_launch("encode_context_backward", Launchers::backward(&args, stream));

    EncodeUnpackArgs<input_t, scalar_t> sum{};
    sum.parts = parts;
    sum.sets = sets;
    sum.size = size;
    sum.partial = args.partial;
    lay_out_parameters(sizes, begin, sum);
    for (int64_t l = 0; l < layers; ++l) {
      sum.grad_weight[l] = data<input_t>(grad.weights[l]);
      sum.grad_bias[l] = data<input_t>(grad.biases[l]);
    }
    sum.grad_bias[layers] = data<input_t>(grad.query);
    check_launch("encode_context_backward", Launchers::unpack(&sum, stream));
  });
  return {grad.context, grad.weights, grad.biases, grad.query};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m) {
  m.impl("encode_context", TORCH_BOX(&mg2l::encode_context_cuda));
  m.impl("encode_context_backward", TORCH_BOX(&mg2l::encode_context_backward_cuda));
}
