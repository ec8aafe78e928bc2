// Matrices turned over, a block of four rows and four columns at a time.
#pragma once

#include <cstdint>

#include "vec.h"

namespace mg2l {

// Four lanes of two vectors of four, by their numbers: those of `y` are 4 to 7.
template <typename scalar_t, int kA, int kB, int kC, int kD>
MG2L_INLINE Vec<scalar_t, 4> pick(const Vec<scalar_t, 4>& x, const Vec<scalar_t, 4>& y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, kA, kB, kC, kD);
#else
  return __builtin_shuffle(x, y, VecBits<scalar_t, 4>{kA, kB, kC, kD});
#endif
}

// [4, 4] to its transpose; strides are those of rows.
template <typename scalar_t>
MG2L_INLINE void transpose_block(const scalar_t* from, int64_t from_stride, scalar_t* to,
                                 int64_t to_stride) {
  using V = Vec<scalar_t, 4>;
  const V a = load<V>(from), b = load<V>(from + from_stride);
  const V c = load<V>(from + 2 * from_stride), d = load<V>(from + 3 * from_stride);
  const V ab = pick<scalar_t, 0, 4, 1, 5>(a, b), cd = pick<scalar_t, 0, 4, 1, 5>(c, d);
  const V ab_after = pick<scalar_t, 2, 6, 3, 7>(a, b), cd_after = pick<scalar_t, 2, 6, 3, 7>(c, d);
  store(to, pick<scalar_t, 0, 1, 4, 5>(ab, cd));
  store(to + to_stride, pick<scalar_t, 2, 3, 6, 7>(ab, cd));
  store(to + 2 * to_stride, pick<scalar_t, 0, 1, 4, 5>(ab_after, cd_after));
  store(to + 3 * to_stride, pick<scalar_t, 2, 3, 6, 7>(ab_after, cd_after));
}

// [rows, columns] to [columns, rows]; strides are those of rows.
template <typename scalar_t>
void transpose(const scalar_t* from, int64_t from_stride, int64_t rows, int64_t columns,
               scalar_t* to, int64_t to_stride) {
  const int64_t whole = rows / 4 * 4, blocks = columns / 4 * 4;
  for (int64_t i = 0; i < blocks; i += 4) {
    for (int64_t h = 0; h < whole; h += 4) {
      transpose_block(from + h * from_stride + i, from_stride, to + i * to_stride + h, to_stride);
    }
  }
  for (int64_t h = 0; h < rows; ++h) {
    for (int64_t i = h < whole ? blocks : 0; i < columns; ++i) {
      to[i * to_stride + h] = from[h * from_stride + i];
    }
  }
}

}  // namespace mg2l
