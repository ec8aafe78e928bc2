// Launchers of `encode_context` and `encode_context_backward`.
#include "encode_context.cuh"
#include "encode_context_backward.cuh"

namespace mg2l {
namespace {

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Where everything lies, in shared memory and in the buffers.
template <typename input_t, typename scalar_t>
EncodePlan<input_t, scalar_t> lay_out(const EncodeArgs<input_t, scalar_t>& args, bool backward) {
  EncodePlan<input_t, scalar_t> plan{};
  static_cast<EncodeArgs<input_t, scalar_t>&>(plan) = args;
  const int64_t sets = args.own_weights ? args.agents : 1;
  const int64_t per_row = shared_per_row(args.features, args.layers, args.units, backward);
  const int64_t rows = tile_rows(args.transitions, per_row, sizeof(scalar_t));
  plan.tile_rows = static_cast<int>(rows);

  int64_t inputs = args.features, shared = rows * pitch(args.features);
  int64_t sides[2] = {0, 0};  // forward: what even layers write, and what odd layers write
  if (!backward) {
    int64_t widest = 0;
    for (int64_t l = 0; l < args.layers; l += 2) {
      widest = args.units[l] > widest ? args.units[l] : widest;
    }
    sides[1] = rows * pitch(widest);
    plan.first_inputs = static_cast<int>(sides[1]);
    plan.pooled = static_cast<int>(rows * per_row);
  }
  for (int64_t l = 0; l < args.layers; ++l) {
    EncodeLayer& layer = plan.layer[l];
    const int64_t units = args.units[l];
    layer.inputs = static_cast<int>(inputs);
    layer.units = static_cast<int>(units);
    layer.packed = packed_offset(args.features, args.layers, args.units, sets, l);
    layer.packed_stride = packed_size(units, inputs);
    layer.gradient = gradient_offset(args.features, args.layers, args.units, l);
    layer.features = static_cast<int>(backward ? shared : sides[l % 2]);
    layer.slopes = static_cast<int>(shared + rows * pitch(units));
    shared += 2 * rows * pitch(units);
    inputs = units;
  }
  plan.query = packed_offset(args.features, args.layers, args.units, sets, args.layers);
  plan.gradient_query = gradient_offset(args.features, args.layers, args.units, args.layers);
  plan.gradient_size = gradient_offset(args.features, args.layers, args.units, args.layers + 1);
  return plan;
}

template <typename input_t, typename scalar_t>
int launch_forward(const EncodeForwardArgs<input_t, scalar_t>& args, void* stream) {
  const int64_t pairs = args.in.contexts * args.in.agents,
                units = args.in.units[args.in.layers - 1];
  if (pairs == 0) return cudaSuccess;
  const auto plan = lay_out(args.in, false);
  const int64_t shared = plan.pooled + padded(units);
  const auto kernel = encode_context_kernel<input_t, scalar_t>;
  MG2L_LAUNCH_SHARED(kernel, dim3(static_cast<unsigned>(pairs * args.splits)), dim3(kEncodeThreads),
                     shared * sizeof(scalar_t), stream, plan, args.splits, args.partial,
                     args.weights);
  const auto finish = encode_context_finish_kernel<input_t, scalar_t>;
  MG2L_LAUNCH(finish, dim3(static_cast<unsigned>(pairs)), dim3(kEncodeThreads), stream, units,
              args.in.transitions, args.splits, args.partial, args.pooled, args.lse, args.weights);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_backward(const EncodeBackwardArgs<input_t, scalar_t>& args, void* stream) {
  const EncodeArgs<input_t, scalar_t>& in = args.in;
  const int64_t sets = in.own_weights ? in.agents : 1;
  if (sets == 0) return cudaSuccess;
  const auto plan = lay_out(in, true);
  const int64_t per_row = shared_per_row(in.features, in.layers, in.units, true);
  const auto kernel = encode_context_backward_kernel<input_t, scalar_t>;
  MG2L_LAUNCH_SHARED(kernel, dim3(static_cast<unsigned>(args.parts), static_cast<unsigned>(sets)),
                     dim3(kEncodeThreads), plan.tile_rows * per_row * sizeof(scalar_t), stream,
                     plan, args);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_pack(const EncodePackArgs<input_t, scalar_t>& args, void* stream) {
  if (args.sets == 0) return cudaSuccess;
  int64_t most = 0;
  for (int64_t l = 0; l < args.layers; ++l) {
    const int64_t size = args.sets * packed_size(args.units[l], args.inputs[l]);
    most = size > most ? size : most;
  }
  const auto kernel = encode_context_pack_kernel<input_t, scalar_t>;
  const dim3 grid(blocks(most, kEncodeThreads), static_cast<unsigned>(args.layers));
  MG2L_LAUNCH(kernel, grid, dim3(kEncodeThreads), stream, args);
  return cudaGetLastError();
}

template <typename input_t, typename scalar_t>
int launch_unpack(const EncodeUnpackArgs<input_t, scalar_t>& args, void* stream) {
  if (args.sets == 0) return cudaSuccess;
  int64_t most = 0;
  for (int64_t l = 0; l < args.layers; ++l) {
    const int64_t size = args.sets * args.units[l] * (args.inputs[l] + 1);
    most = size > most ? size : most;
  }
  const auto kernel = encode_context_unpack_kernel<input_t, scalar_t>;
  const dim3 grid(blocks(most, 32), static_cast<unsigned>(args.layers));
  MG2L_LAUNCH(kernel, grid, dim3(kEncodeThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

#define MG2L_ENCODE_LAUNCHERS(name, input_t, scalar_t)                                             \
  int mg2l_encode_context_##name(const EncodeForwardArgs<input_t, scalar_t>* args, void* stream) { \
    return launch_forward(*args, stream);                                                          \
  }                                                                                                \
  int mg2l_encode_context_backward_##name(const EncodeBackwardArgs<input_t, scalar_t>* args,       \
                                          void* stream) {                                          \
    return launch_backward(*args, stream);                                                         \
  }                                                                                                \
  int mg2l_encode_context_pack_##name(const EncodePackArgs<input_t, scalar_t>* args,               \
                                      void* stream) {                                              \
    return launch_pack(*args, stream);                                                             \
  }                                                                                                \
  int mg2l_encode_context_unpack_##name(const EncodeUnpackArgs<input_t, scalar_t>* args,           \
                                        void* stream) {                                            \
    return launch_unpack(*args, stream);                                                           \
  }

MG2L_ENCODE_LAUNCHERS(float, float, float)
MG2L_ENCODE_LAUNCHERS(double, double, double)
MG2L_ENCODE_LAUNCHERS(bfloat16, Bf16, float)

}  // namespace mg2l
