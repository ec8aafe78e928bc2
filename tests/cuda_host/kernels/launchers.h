// Launchers of the self-test kernels.
#pragma once

#include <cstdint>

#define MG2L_API extern "C" __attribute__((visibility("default")))

MG2L_API int row_sum(int64_t rows, int64_t columns, const float* x, float* sums, void* stream);
MG2L_API int row_scan(int64_t rows, int64_t columns, const float* x, float* scan, void* stream);
MG2L_API int histogram(int64_t count, const float* x, int32_t* counts, void* stream);
MG2L_API int warp_transpose(int64_t tiles, const float* x, float* transposed, void* stream);
MG2L_API int warp_vote(int64_t count, const float* x, int32_t* positive, float* largest,
                       void* stream);
MG2L_API int reverse(int64_t rows, int64_t columns, const float* x, float* reversed, void* stream);
MG2L_API int pairs(int64_t count, int64_t shift, const float* x, double* pairs, void* stream);
MG2L_API int greedy(int64_t bytes, const float* x, float* reversed, void* stream);
