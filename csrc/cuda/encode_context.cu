// Launchers of `encode_context` and `encode_context_backward`.
#include "encode_context.cuh"
#include "launchers.h"

namespace mg2l {
namespace {

struct EncodeCall {
  int64_t contexts, transitions, agents, features, rows, layers;
  const int64_t* units;
  int64_t own_weights, tanh_gelu;

  int64_t pairs() const { return contexts * agents; }
  int64_t sets() const { return own_weights ? agents : 1; }
  int64_t last() const { return units[layers - 1]; }
};

unsigned blocks(int64_t count) {
  return static_cast<unsigned>((count + kEncodeThreads - 1) / kEncodeThreads);
}

// Where everything lies, in shared memory and in the buffers.
template <typename input_t, typename scalar_t>
EncodeArgs<input_t, scalar_t> lay_out(const EncodeCall& call, bool backward, const input_t* context,
                                      const int64_t* index, const scalar_t* packed) {
  EncodeArgs<input_t, scalar_t> args{};
  args.contexts = call.contexts;
  args.transitions = call.transitions;
  args.agents = call.agents;
  args.features = call.features;
  args.rows = call.rows;
  args.own_weights = call.own_weights != 0;
  args.tanh_gelu = call.tanh_gelu != 0;
  args.layers = static_cast<int>(call.layers);
  const int64_t per_row = shared_per_row(call.features, call.layers, call.units, backward);
  const int64_t rows = tile_rows(call.transitions, per_row, sizeof(scalar_t));
  args.tile_rows = static_cast<int>(rows);
  args.context = context;
  args.index = index;
  args.packed = packed;

  int64_t inputs = call.features, shared = rows * pitch(call.features);
  int64_t sides[2] = {0, 0};  // forward: what even layers write, and what odd layers write
  if (!backward) {
    int64_t widest = 0;
    for (int64_t l = 0; l < call.layers; l += 2) {
      widest = call.units[l] > widest ? call.units[l] : widest;
    }
    sides[1] = rows * pitch(widest);
    args.inputs = static_cast<int>(sides[1]);
    args.pooled = static_cast<int>(rows * per_row);
  }
  for (int64_t l = 0; l < call.layers; ++l) {
    EncodeLayer& layer = args.layer[l];
    const int64_t units = call.units[l];
    layer.inputs = static_cast<int>(inputs);
    layer.units = static_cast<int>(units);
    layer.packed = packed_offset(call.features, call.layers, call.units, call.sets(), l);
    layer.packed_stride = packed_size(units, inputs);
    layer.gradient = gradient_offset(call.features, call.layers, call.units, l);
    layer.features = static_cast<int>(backward ? shared : sides[l % 2]);
    layer.slopes = static_cast<int>(shared + rows * pitch(units));
    shared += 2 * rows * pitch(units);
    inputs = units;
  }
  args.query = packed_offset(call.features, call.layers, call.units, call.sets(), call.layers);
  args.gradient_query = gradient_offset(call.features, call.layers, call.units, call.layers);
  args.gradient_size = gradient_offset(call.features, call.layers, call.units, call.layers + 1);
  return args;
}

template <typename input_t, typename scalar_t>
int launch_encode_context(const EncodeCall& call, int64_t splits, const input_t* context,
                          const int64_t* index, const scalar_t* packed, scalar_t* partial,
                          scalar_t* pooled, scalar_t* lse, input_t* weights, void* stream) {
  if (call.pairs() == 0) return cudaSuccess;
  const auto args = lay_out<input_t, scalar_t>(call, false, context, index, packed);
  const int64_t shared = args.pooled + padded(call.last());
  const auto pairs = static_cast<unsigned>(call.pairs());
  const auto kernel = encode_context_kernel<input_t, scalar_t>;
  MG2L_LAUNCH_SHARED(kernel, dim3(pairs * static_cast<unsigned>(splits)), dim3(kEncodeThreads),
                     shared * sizeof(scalar_t), stream, args, splits, partial, weights);
  const auto finish = encode_context_finish_kernel<input_t, scalar_t>;
  MG2L_LAUNCH(finish, dim3(pairs), dim3(kEncodeThreads), stream, call.last(), call.transitions,
              splits, partial, pooled, lse, weights);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_encode_context_backward(const EncodeCall& call, int64_t parts,
                                   const scalar_t* grad_pooled, const input_t* context,
                                   const int64_t* index, const scalar_t* packed,
                                   const scalar_t* pooled, const scalar_t* lse, scalar_t* partial,
                                   input_t* grad_context, void* stream) {
  if (call.sets() == 0) return cudaSuccess;
  const auto args = lay_out<input_t, scalar_t>(call, true, context, index, packed);
  const int64_t per_row = shared_per_row(call.features, call.layers, call.units, true);
  const auto kernel = encode_context_backward_kernel<input_t, scalar_t>;
  const EncodeBackwardArgs<input_t, scalar_t> backward{args, grad_pooled, pooled,
                                                       lse,  partial,     grad_context};
  MG2L_LAUNCH_SHARED(kernel, dim3(static_cast<unsigned>(parts), static_cast<unsigned>(call.sets())),
                     dim3(kEncodeThreads), args.tile_rows * per_row * sizeof(scalar_t), stream,
                     backward);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_pack(int64_t sets, int64_t units, int64_t inputs, const input_t* weight,
                const input_t* bias, scalar_t* packed, void* stream) {
  if (sets == 0) return cudaSuccess;
  const auto kernel = encode_context_pack_kernel<input_t, scalar_t>;
  MG2L_LAUNCH(kernel, dim3(blocks(sets * packed_size(units, inputs))), dim3(kEncodeThreads), stream,
              sets, units, inputs, weight, bias, packed);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_unpack(int64_t parts, int64_t sets, int64_t units, int64_t inputs, int64_t size,
                  int64_t offset, const scalar_t* partial, input_t* grad_weight, input_t* grad_bias,
                  void* stream) {
  if (sets == 0) return cudaSuccess;
  const auto kernel = encode_context_unpack_kernel<input_t, scalar_t>;
  MG2L_LAUNCH(kernel, dim3(blocks(sets * units * (inputs + 1))), dim3(kEncodeThreads), stream,
              parts, sets, units, inputs, size, offset, partial, grad_weight, grad_bias);
  return cudaGetLastError();
}

// The type that kernels see of one that crosses the boundary.
template <typename T>
T* seen(T* pointer) {
  return pointer;
}
const Bf16* seen(const uint16_t* pointer) { return reinterpret_cast<const Bf16*>(pointer); }
Bf16* seen(uint16_t* pointer) { return reinterpret_cast<Bf16*>(pointer); }

}  // namespace
}  // namespace mg2l

#define MG2L_ENCODE_LAUNCHERS(name, input_t, scalar_t)                                             \
  int mg2l_encode_context_##name(                                                                  \
      int64_t contexts, int64_t transitions, int64_t agents, int64_t features, int64_t rows,       \
      int64_t layers, const int64_t* units, int64_t own_weights, int64_t tanh_gelu,                \
      int64_t splits, const input_t* context, const int64_t* index, const scalar_t* packed,        \
      scalar_t* partial, scalar_t* pooled, scalar_t* lse, input_t* weights, void* stream) {        \
    return mg2l::launch_encode_context(                                                            \
        {contexts, transitions, agents, features, rows, layers, units, own_weights, tanh_gelu},    \
        splits, mg2l::seen(context), index, packed, partial, pooled, lse, mg2l::seen(weights),     \
        stream);                                                                                   \
  }                                                                                                \
  int mg2l_encode_context_backward_##name(                                                         \
      int64_t contexts, int64_t transitions, int64_t agents, int64_t features, int64_t rows,       \
      int64_t layers, const int64_t* units, int64_t own_weights, int64_t tanh_gelu, int64_t parts, \
      const scalar_t* grad_pooled, const input_t* context, const int64_t* index,                   \
      const scalar_t* packed, const scalar_t* pooled, const scalar_t* lse, scalar_t* partial,      \
      input_t* grad_context, void* stream) {                                                       \
    return mg2l::launch_encode_context_backward(                                                   \
        {contexts, transitions, agents, features, rows, layers, units, own_weights, tanh_gelu},    \
        parts, grad_pooled, mg2l::seen(context), index, packed, pooled, lse, partial,              \
        mg2l::seen(grad_context), stream);                                                         \
  }                                                                                                \
  int mg2l_encode_context_pack_##name(int64_t sets, int64_t units, int64_t inputs,                 \
                                      const input_t* weight, const input_t* bias,                  \
                                      scalar_t* packed, void* stream) {                            \
    return mg2l::launch_pack(sets, units, inputs, mg2l::seen(weight), mg2l::seen(bias), packed,    \
                             stream);                                                              \
  }                                                                                                \
  int mg2l_encode_context_unpack_##name(                                                           \
      int64_t parts, int64_t sets, int64_t units, int64_t inputs, int64_t size, int64_t offset,    \
      const scalar_t* partial, input_t* grad_weight, input_t* grad_bias, void* stream) {           \
    return mg2l::launch_unpack(parts, sets, units, inputs, size, offset, partial,                  \
                               mg2l::seen(grad_weight), mg2l::seen(grad_bias), stream);            \
  }

MG2L_ENCODE_LAUNCHERS(float, float, float)
MG2L_ENCODE_LAUNCHERS(double, double, double)
MG2L_ENCODE_LAUNCHERS(bfloat16, uint16_t, float)
