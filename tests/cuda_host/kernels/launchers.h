// Launchers of the self-test kernels.
#pragma once

#include <cstdint>

#define MG2L_API extern "C" __attribute__((visibility("default")))

struct RowArgs {
  int64_t rows;
  int64_t columns;
  const float* x;  // [rows, columns]
  float* y;        // [rows, columns], or [rows] for sums
};

struct HistogramArgs {
  int64_t count;
  const float* x;   // [count]
  int32_t* counts;  // [64]
};

struct TransposeArgs {
  int64_t tiles;
  const float* x;     // [tiles, 32, 32]
  float* transposed;  // [tiles, 32, 32]
};

struct VoteArgs {
  int64_t count;
  const float* x;     // [count]
  int32_t* positive;  // [count]
  float* largest;     // [count]
};

struct PairsArgs {
  int64_t count;
  int64_t shift;
  const float* x;  // [shift + 2 * count]
  double* pairs;   // [count]
};

struct SharedArgs {
  int64_t static_floats;  // 1024, 12288 or 12289
  int64_t dynamic_bytes;
  bool opt_in;
  float* y;  // [1]
};

MG2L_API int row_sum(const RowArgs* args, void* stream);
MG2L_API int row_scan(const RowArgs* args, void* stream);
MG2L_API int reverse(const RowArgs* args, void* stream);
MG2L_API int histogram(const HistogramArgs* args, void* stream);
MG2L_API int warp_transpose(const TransposeArgs* args, void* stream);
MG2L_API int warp_vote(const VoteArgs* args, void* stream);
MG2L_API int much_shared(const SharedArgs* args, void* stream);
MG2L_API int pairs(const PairsArgs* args, void* stream);
