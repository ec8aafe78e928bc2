// The C boundary between kernels (nvcc) and their binding to torch (host compiler): one plain
// struct for each operator and direction, which the kernels take as it is; no CUDA and no torch
// type crosses. `stream` is a cudaStream_t, the result a cudaError_t. Shapes and meanings are those
// of mg2l/ops. The comment after a pointer gives its shape, and "or null" where it may be null:
// tests/cuda_host reads this file, one field a line.
#pragma once

#include <cstdint>

#ifdef MG2L_CUDA_HOST
#define MG2L_API extern "C" __attribute__((visibility("default")))
#else
#define MG2L_API extern "C" __attribute__((visibility("hidden")))
#endif

namespace mg2l {

MG2L_API const char* mg2l_error_string(int status);

template <typename scalar_t>
struct GaeArgs {
  int64_t steps;
  int64_t columns;
  scalar_t gamma;
  scalar_t decay;                // gamma * lambda
  const scalar_t* rewards;       // [T, N]
  const scalar_t* values;        // [T + 1, N]
  const uint8_t* terminated;     // [T, N]
  const uint8_t* truncated;      // [T, N]
  const scalar_t* final_values;  // [T, N] or null
  const scalar_t* value_mean;    // [N] or null
  const scalar_t* value_std;     // [N] or null
  scalar_t* advantages;          // [T, N]
  scalar_t* returns;             // [T, N]
  double* moments;               // [2, N]
};

template <typename scalar_t>
struct GaeBackwardArgs {
  int64_t steps;
  int64_t columns;
  scalar_t gamma;
  scalar_t decay;                   // gamma * lambda
  const scalar_t* grad_advantages;  // [T, N]
  const scalar_t* grad_returns;     // [T, N]
  const uint8_t* terminated;        // [T, N]
  const uint8_t* truncated;         // [T, N]
  scalar_t* grad_rewards;           // [T, N]
  scalar_t* grad_values;            // [T + 1, N]
  scalar_t* grad_final_values;      // [T, N] or null
};

MG2L_API int mg2l_gae_float(const GaeArgs<float>* args, void* stream);
MG2L_API int mg2l_gae_double(const GaeArgs<double>* args, void* stream);
MG2L_API int mg2l_gae_backward_float(const GaeBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_gae_backward_double(const GaeBackwardArgs<double>* args, void* stream);

template <typename scalar_t>
struct PoolArgs {
  int64_t outer;
  int64_t length;
  int64_t inner;
  int64_t width;
  int64_t heads;
  const scalar_t* x;      // [outer, T, inner, D]
  const scalar_t* query;  // [heads, D]
  const uint8_t* mask;    // [outer, T, inner] or null
};

template <typename scalar_t>
struct PoolForwardArgs {
  PoolArgs<scalar_t> in;
  scalar_t* pooled;   // [outer, inner, heads, D]
  scalar_t* lse;      // [outer, inner, heads]
  scalar_t* weights;  // [outer, inner, heads, T]
  scalar_t* partial;  // scratch, [rows, pool_splits(rows, T), pool_partial_width(D)], or null for 1
};

template <typename scalar_t>
struct PoolBackwardArgs {
  PoolArgs<scalar_t> in;
  const scalar_t* grad;    // [outer, inner, heads, D]
  const scalar_t* pooled;  // [outer, inner, heads, D]
  const scalar_t* lse;     // [outer, inner, heads]
  scalar_t* weights;       // scratch, [outer, inner, heads, T]
  scalar_t* grad_logits;   // scratch, [outer, inner, heads, T]
  scalar_t* partial;       // scratch, [kQueryParts, heads, D]
  scalar_t* grad_x;        // [outer, T, inner, D]
  scalar_t* grad_query;    // [heads, D]
};

MG2L_API int mg2l_pia_pool_float(const PoolForwardArgs<float>* args, void* stream);
MG2L_API int mg2l_pia_pool_double(const PoolForwardArgs<double>* args, void* stream);
MG2L_API int mg2l_pia_pool_backward_float(const PoolBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_pia_pool_backward_double(const PoolBackwardArgs<double>* args, void* stream);

template <typename scalar_t>
struct PairArgs {
  int64_t groups;
  int64_t queries;
  int64_t keys;
  int64_t width;
  scalar_t scale;
  scalar_t clip;                // 0 for none
  const scalar_t* query;        // [G, B, D]
  const scalar_t* key;          // [G, M, D]
  const scalar_t* std;          // [G, M, D] or null
  const int64_t* positive;      // [G, B]
  const int64_t* query_labels;  // [G, B] or null
  const int64_t* key_labels;    // [G, M] or null
  const uint8_t* mask;          // [G, B, M] or null
  const scalar_t* products;     // [B, M], queries times keys of the one group, or null
  scalar_t* offsets;            // scratch, [G, M], wanted with std, or null
};

template <typename scalar_t>
struct PairForwardArgs {
  PairArgs<scalar_t> in;
  int64_t splits;            // pair_splits(G, B, M)
  scalar_t* partial;         // scratch, [G * B, splits, 3], or null for 1
  int64_t* partial_counts;   // scratch, [G * B, splits, 2], or null for 1
  scalar_t* lse;             // [G, B]
  scalar_t* lse_negatives;   // [G, B]
  scalar_t* mean;            // [G, B]
  scalar_t* positive_score;  // [G, B]
  int64_t* negatives;        // [G, B]
  int64_t* rank;             // [G, B]
};

// What the gradients of scores follow from.
template <typename scalar_t>
struct PairGradients {
  PairArgs<scalar_t> in;
  const scalar_t* lse;                 // [G, B]
  const scalar_t* lse_negatives;       // [G, B]
  const int64_t* negatives;            // [G, B]
  const scalar_t* grad_lse;            // [G, B]
  const scalar_t* grad_lse_negatives;  // [G, B]
  const scalar_t* grad_mean;           // [G, B]
  const scalar_t* grad_positive;       // [G, B]
};

template <typename scalar_t>
struct PairBackwardArgs {
  PairGradients<scalar_t> of;
  int64_t query_splits;     // pair_splits(G, B, M)
  int64_t key_splits;       // pair_splits(G, M, B)
  scalar_t* partial_query;  // scratch, [query_splits, G, B, D], or null for 1
  scalar_t* partial_key;    // scratch, [key_splits, G, M, D], or null for 1
  scalar_t* partial_std;    // scratch, [key_splits, G, M, D], wanted with std, or null for 1
  scalar_t* grad_query;     // [G, B, D]
  scalar_t* grad_key;       // [G, M, D]
  scalar_t* grad_std;       // [G, M, D], wanted with std, or null
};

// Gradients of the products themselves, for one group; they may take the products' place.
template <typename scalar_t>
struct PairProductsArgs {
  PairGradients<scalar_t> of;
  scalar_t* grad_products;  // [B, M]
};

MG2L_API int mg2l_pairwise_lse_float(const PairForwardArgs<float>* args, void* stream);
MG2L_API int mg2l_pairwise_lse_double(const PairForwardArgs<double>* args, void* stream);
MG2L_API int mg2l_pairwise_lse_backward_float(const PairBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_pairwise_lse_backward_double(const PairBackwardArgs<double>* args, void* stream);
MG2L_API int mg2l_pairwise_lse_products_float(const PairProductsArgs<float>* args, void* stream);
MG2L_API int mg2l_pairwise_lse_products_double(const PairProductsArgs<double>* args, void* stream);

// bfloat16 as it is stored; kernels compute in float.
struct Bf16 {
  uint16_t bits;
};

// `packed` holds the layers as `pack` lays them out, one after the other, then the query, a layer
// without inputs (encode_context_layout.h).
template <typename input_t, typename scalar_t>
struct EncodeArgs {
  int64_t contexts;
  int64_t transitions;
  int64_t agents;
  int64_t features;
  int64_t rows;
  int64_t layers;
  bool own_weights;
  bool tanh_gelu;
  const int64_t* units;    // [layers], in the host's memory: width of every hidden layer
  const input_t* context;  // [R, A, F]
  const int64_t* index;    // [B, T] or null
  const scalar_t* packed;  // [packed_offset(..., layers + 1)]
};

template <typename input_t, typename scalar_t>
struct EncodeForwardArgs {
  EncodeArgs<input_t, scalar_t> in;
  int64_t splits;
  scalar_t* partial;  // scratch, [B * A * splits, partial_width(H)]
  scalar_t* pooled;   // [B, A, H]
  scalar_t* lse;      // [B, A]
  input_t* weights;   // [B, A, T] or null
};

template <typename input_t, typename scalar_t>
struct EncodeBackwardArgs {
  EncodeArgs<input_t, scalar_t> in;
  int64_t parts;
  const scalar_t* grad_pooled;  // [B, A, H]
  const scalar_t* pooled;       // [B, A, H]
  const scalar_t* lse;          // [B, A]
  scalar_t* partial;            // scratch, [sets, parts, gradient_offset(..., layers + 1)]
  input_t* grad_context;        // [B, T, A, F] or null
};

constexpr int kMaxParameters = 9;  // hidden layers, and the query

// Lays out all layers, and the query, as the kernels read them.
template <typename input_t, typename scalar_t>
struct EncodePackArgs {
  int64_t sets;
  int64_t layers;  // the query among them
  int64_t units[kMaxParameters];
  int64_t inputs[kMaxParameters];         // 0 for the query
  int64_t offset[kMaxParameters];         // in packed
  const input_t* weight[kMaxParameters];  // [sets, units, inputs] or null
  const input_t* bias[kMaxParameters];    // [sets, units] or null
  scalar_t* packed;                       // of all layers, [sets, packed_size(units, inputs)]
};

// Adds up the parts of the gradients of all layers, and of the query.
template <typename input_t, typename scalar_t>
struct EncodeUnpackArgs {
  int64_t parts;
  int64_t sets;
  int64_t size;
  int64_t layers;  // the query among them
  int64_t units[kMaxParameters];
  int64_t inputs[kMaxParameters];        // 0 for the query
  int64_t offset[kMaxParameters];        // in a part
  const scalar_t* partial;               // [sets, parts, size]
  input_t* grad_weight[kMaxParameters];  // [sets, units, inputs] or null
  input_t* grad_bias[kMaxParameters];    // [sets, units] or null
};

MG2L_API int mg2l_encode_context_float(const EncodeForwardArgs<float, float>* args, void* stream);
MG2L_API int mg2l_encode_context_double(const EncodeForwardArgs<double, double>* args,
                                        void* stream);
MG2L_API int mg2l_encode_context_bfloat16(const EncodeForwardArgs<Bf16, float>* args, void* stream);
MG2L_API int mg2l_encode_context_backward_float(const EncodeBackwardArgs<float, float>* args,
                                                void* stream);
MG2L_API int mg2l_encode_context_backward_double(const EncodeBackwardArgs<double, double>* args,
                                                 void* stream);
MG2L_API int mg2l_encode_context_backward_bfloat16(const EncodeBackwardArgs<Bf16, float>* args,
                                                   void* stream);
MG2L_API int mg2l_encode_context_pack_float(const EncodePackArgs<float, float>* args, void* stream);
MG2L_API int mg2l_encode_context_pack_double(const EncodePackArgs<double, double>* args,
                                             void* stream);
MG2L_API int mg2l_encode_context_pack_bfloat16(const EncodePackArgs<Bf16, float>* args,
                                               void* stream);
MG2L_API int mg2l_encode_context_unpack_float(const EncodeUnpackArgs<float, float>* args,
                                              void* stream);
MG2L_API int mg2l_encode_context_unpack_double(const EncodeUnpackArgs<double, double>* args,
                                               void* stream);
MG2L_API int mg2l_encode_context_unpack_bfloat16(const EncodeUnpackArgs<Bf16, float>* args,
                                                 void* stream);

// A step of N particle worlds (csrc/particle/scenarios.h).
template <typename scalar_t>
struct ParticleArgs {
  int64_t worlds;
  int64_t kind;
  int64_t agents;
  int64_t bodies;
  int64_t objects;  // landmarks
  int64_t task_width;
  int64_t draw_count;
  int64_t width;               // of an observation
  bool advance;                // or only observe
  const scalar_t* actions;     // [N, A, 2]
  const double* landmarks;     // [N, L, 2]
  const double* task;          // [N, task_width]
  const double* draws;         // [N, draw_count]
  const double* acceleration;  // [B]
  const double* size;          // [B]
  const double* max_speed;     // [B]
  const uint8_t* collides;     // [B]
  double* position;            // [N, B, 2], in place
  double* velocity;            // [N, B, 2], in place
  int64_t* clock;              // [N], in place
  double* force;               // scratch, [N, B, 2]
  float* observations;         // [N, A, width]
  float* rewards;              // [N, A]
};

MG2L_API int mg2l_particle_step_float(const ParticleArgs<float>* args, void* stream);
MG2L_API int mg2l_particle_step_double(const ParticleArgs<double>* args, void* stream);

// One layer of `stacked_mlp` after its product.
template <typename scalar_t>
struct MlpForwardArgs {
  int64_t groups;
  int64_t rows;
  int64_t units;
  bool normalise;  // or the layer is linear alone
  bool relu;       // else tanh
  scalar_t epsilon;
  const scalar_t* product;  // [G, rows, units]
  const scalar_t* bias;     // [G, units]
  scalar_t* features;       // [G, rows, units]
  scalar_t* moments;        // [G, rows, 2] or null
};

template <typename scalar_t>
struct MlpBackwardArgs {
  int64_t groups;
  int64_t rows;
  int64_t units;
  bool relu;                 // else tanh
  const scalar_t* grad;      // [G, rows, units]
  const scalar_t* features;  // [G, rows, units]
  const scalar_t* moments;   // [G, rows, 2]
  scalar_t* grad_product;    // [G, rows, units]
};

MG2L_API int mg2l_stacked_mlp_float(const MlpForwardArgs<float>* args, void* stream);
MG2L_API int mg2l_stacked_mlp_double(const MlpForwardArgs<double>* args, void* stream);
MG2L_API int mg2l_stacked_mlp_backward_float(const MlpBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_stacked_mlp_backward_double(const MlpBackwardArgs<double>* args, void* stream);

template <typename scalar_t>
struct FilmArgs {
  int64_t groups;
  int64_t rows;
  int64_t width;
  int64_t latents;
  bool shared;                // by rows, which an index says
  const scalar_t* features;   // [A, rows, H]
  const scalar_t* generated;  // [A, N, 2 H]
  const int64_t* index;       // [rows] or null
};

template <typename scalar_t>
struct FilmForwardArgs {
  FilmArgs<scalar_t> in;
  scalar_t* y;  // [A, rows, H]
};

template <typename scalar_t>
struct FilmBackwardArgs {
  FilmArgs<scalar_t> in;
  const scalar_t* grad;      // [A, rows, H]
  scalar_t* grad_features;   // [A, rows, H]
  scalar_t* grad_generated;  // [A, N, 2 H]
};

MG2L_API int mg2l_film_float(const FilmForwardArgs<float>* args, void* stream);
MG2L_API int mg2l_film_double(const FilmForwardArgs<double>* args, void* stream);
MG2L_API int mg2l_film_backward_float(const FilmBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_film_backward_double(const FilmBackwardArgs<double>* args, void* stream);

template <typename scalar_t>
struct ClippedArgs {
  int64_t agents;
  int64_t rows;
  scalar_t weight;          // of every row where there are no weights
  scalar_t clip;            // infinite for none
  scalar_t delta;           // of the Huber loss; infinite for none
  const scalar_t* first;    // [A, rows]: log_probs, or prediction
  const scalar_t* second;   // [A, rows]: before, or old
  const scalar_t* third;    // [A, rows]: advantages, or target
  const scalar_t* weights;  // [A, rows] or null
  scalar_t* slope;          // [A, rows]
  scalar_t* loss;           // [A]
  scalar_t* kl;             // [A] or null
  scalar_t* clip_fraction;  // [A] or null
};

MG2L_API int mg2l_surrogate_float(const ClippedArgs<float>* args, void* stream);
MG2L_API int mg2l_surrogate_double(const ClippedArgs<double>* args, void* stream);
MG2L_API int mg2l_value_loss_float(const ClippedArgs<float>* args, void* stream);
MG2L_API int mg2l_value_loss_double(const ClippedArgs<double>* args, void* stream);

template <typename scalar_t>
struct GaussianArgs {
  int64_t agents;
  int64_t rows;
  int64_t width;
  bool shared;      // one standard deviation for all agents
  scalar_t weight;  // of every row where there are no weights
  scalar_t clip;
  scalar_t entropy_coef;
  const scalar_t* mean;        // [A, rows, W]
  const scalar_t* log_std;     // [A, W], or [W] where it is shared
  const scalar_t* action;      // [A, rows, W]
  const scalar_t* before;      // [A, rows]
  const scalar_t* advantages;  // [A, rows]
  const scalar_t* weights;     // [A, rows] or null
  const uint8_t* own;          // [A, W] or null
  scalar_t* slope;             // scratch, [A, rows]
  scalar_t* mean_slope;        // [A, rows, W]
  scalar_t* log_std_slope;     // [A, W]
  scalar_t* loss;              // [A]
  scalar_t* surrogate;         // [A]
  scalar_t* entropy;           // [A]
  scalar_t* kl;                // [A]
  scalar_t* clip_fraction;     // [A]
};

MG2L_API int mg2l_gaussian_surrogate_float(const GaussianArgs<float>* args, void* stream);
MG2L_API int mg2l_gaussian_surrogate_double(const GaussianArgs<double>* args, void* stream);

template <typename scalar_t>
struct ContrastArgs {
  int64_t groups;
  int64_t rows;
  int64_t keys_count;
  int64_t width;
  scalar_t temperature;
  scalar_t kl_weight;
  scalar_t std_floor;
  const scalar_t* raw;      // [G, B, 2 D]
  const scalar_t* keys;     // [K, D]
  const int64_t* positive;  // [B]
  scalar_t* factors;    // [G, B, K], of each key in the gradient of a row and the other way round
  scalar_t* measured;   // [G, 3, B]: log-probability, hit and divergence of each row
  scalar_t* raw_slope;  // [G, B, 2 D]
  scalar_t* key_slope;  // [G, K, D]
  scalar_t* loss;       // [G]
  scalar_t* bound;      // [G]
  scalar_t* accuracy;   // [G]
  scalar_t* kl;         // [G]
};

MG2L_API int mg2l_contrast_float(const ContrastArgs<float>* args, void* stream);
MG2L_API int mg2l_contrast_double(const ContrastArgs<double>* args, void* stream);

// What follows a product of a layer: its bias, and GELU where it is hidden.
template <typename scalar_t>
struct GeluForwardArgs {
  int64_t rows;
  int64_t units;
  bool activate;
  const scalar_t* product;  // [rows, units]
  const scalar_t* bias;     // [units]
  scalar_t* features;       // [rows, units]
  scalar_t* kept;           // what is activated, [rows, units], or null
};

// Gradients of features, which become those of what was activated.
template <typename scalar_t>
struct GeluBackwardArgs {
  int64_t rows;
  int64_t units;
  const scalar_t* grad;    // of the features, [rows, units]
  const scalar_t* kept;    // what was activated, [rows, units]
  scalar_t* features;      // [rows, units]
  scalar_t* grad_product;  // [rows, units]
};

MG2L_API int mg2l_gelu_mlp_float(const GeluForwardArgs<float>* args, void* stream);
MG2L_API int mg2l_gelu_mlp_double(const GeluForwardArgs<double>* args, void* stream);
MG2L_API int mg2l_gelu_mlp_backward_float(const GeluBackwardArgs<float>* args, void* stream);
MG2L_API int mg2l_gelu_mlp_backward_double(const GeluBackwardArgs<double>* args, void* stream);

// Of both passes.
template <typename scalar_t>
struct InnovationArgs {
  int64_t contexts;
  int64_t steps;
  int64_t agents;
  int64_t width;
  int64_t features;
  int64_t observation;
  int64_t rows;
  const scalar_t* series;        // [rows, A, D]
  const scalar_t* transitions;   // [rows, A, F]
  const int64_t* places;         // [B, T], or null where rows are in order
  const scalar_t* coefficients;  // [3]
  double* moments;               // [B, 3, A, D, D], or null in the backward pass
  const double* grad;            // of these, or null in the forward pass
  double* grad_series;           // [rows, A, D], or null in the forward pass
  double* grad_coefficients;     // [B, A, 3], or null in the forward pass
};

MG2L_API int mg2l_innovation_moments_float(const InnovationArgs<float>* args, void* stream);
MG2L_API int mg2l_innovation_moments_double(const InnovationArgs<double>* args, void* stream);
MG2L_API int mg2l_innovation_moments_backward_float(const InnovationArgs<float>* args,
                                                    void* stream);
MG2L_API int mg2l_innovation_moments_backward_double(const InnovationArgs<double>* args,
                                                     void* stream);

constexpr int kMaxGradients = 64;  // tensors of a launch

// Sums of squares of the gradients of G groups, or what scales them.
template <typename scalar_t>
struct ClipArgs {
  int64_t groups;
  int64_t count;   // tensors
  int64_t blocks;  // of a group
  int64_t first;   // part that the first of them writes
  int64_t parts;   // of all launches
  scalar_t limit;
  int64_t size[kMaxGradients];        // of a group
  scalar_t* gradient[kMaxGradients];  // [G, size] each, in place
  double* partial;                    // scratch, [G, parts]
  scalar_t* norms;                    // [G]
};

MG2L_API int mg2l_clip_norms_sum_float(const ClipArgs<float>* args, void* stream);
MG2L_API int mg2l_clip_norms_sum_double(const ClipArgs<double>* args, void* stream);
MG2L_API int mg2l_clip_norms_scale_float(const ClipArgs<float>* args, void* stream);
MG2L_API int mg2l_clip_norms_scale_double(const ClipArgs<double>* args, void* stream);

}  // namespace mg2l
