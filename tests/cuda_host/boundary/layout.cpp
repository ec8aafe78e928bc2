// Where things lie in the buffers of operators, from the headers that the bindings allocate by.
#include "clip_norms_layout.h"
#include "encode_context_layout.h"
#include "pairwise_lse_layout.h"
#include "pia_pool_layout.h"

#define MG2L_EXPORT extern "C" __attribute__((visibility("default")))

MG2L_EXPORT int64_t clip_blocks(int64_t numbers) { return mg2l::clip_blocks(numbers); }

MG2L_EXPORT int64_t packed_offset(int64_t features, int64_t layers, const int64_t* units,
                                  int64_t sets, int64_t layer) {
  return mg2l::packed_offset(features, layers, units, sets, layer);
}

MG2L_EXPORT int64_t gradient_offset(int64_t features, int64_t layers, const int64_t* units,
                                    int64_t layer) {
  return mg2l::gradient_offset(features, layers, units, layer);
}

MG2L_EXPORT int64_t partial_width(int64_t units) { return mg2l::partial_width(units); }

MG2L_EXPORT int64_t pool_splits(int64_t rows, int64_t length) {
  return mg2l::pool_splits(rows, length);
}

MG2L_EXPORT int64_t pool_partial_width(int64_t width) { return mg2l::pool_partial_width(width); }

MG2L_EXPORT int64_t query_parts() { return mg2l::kQueryParts; }

MG2L_EXPORT int64_t pair_splits(int64_t groups, int64_t rows, int64_t columns) {
  return mg2l::pair_splits(groups, rows, columns);
}

MG2L_EXPORT int64_t products_from() { return mg2l::kProductsFrom; }

MG2L_EXPORT int64_t product_queries(int64_t queries, int64_t keys) {
  return mg2l::product_queries(queries, keys);
}

MG2L_EXPORT int64_t context_splits(int64_t pairs, int64_t transitions) {
  return mg2l::context_splits(pairs, transitions);
}

MG2L_EXPORT int64_t gradient_parts(int64_t sets, int64_t pairs_of_set, int64_t transitions) {
  return mg2l::gradient_parts(sets, pairs_of_set, transitions);
}
