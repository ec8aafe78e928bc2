// Products of rows that are mostly zeros: the columns that are not 0 are listed first.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace mg2l {

// Columns of a row that are not 0, ascending, into `columns`, which has room for a vector more than
// there are; returns how many.
template <int kBytes, typename scalar_t>
MG2L_INLINE int32_t list_nonzeros(const scalar_t* row, int64_t width, int32_t* columns) {
  int64_t column = 0;
  int32_t count = 0;
#if defined(__x86_64__) && !defined(__clang__)  // which checks operands before it inlines
  if constexpr (kBytes == 64 && sizeof(scalar_t) == 4) {
    using Lanes = VecBits<float, 16>;
    Lanes numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; column + 16 <= width; column += 16) {
      Lanes found;
      uint32_t mask;
      asm("vcmpneqps %4, %2, %%k1\n\t"  // true of NaN
          "kmovw %%k1, %1\n\t"
          "vpcompressd %3, %0 %{%%k1%}%{z%}"
          : "=&v"(found), "=&r"(mask)
          : "v"(load<Vec<float, 16>>(row + column)), "v"(numbers), "v"(Vec<float, 16>{})
          : "k1");
      store(columns + count, found);
      count += __builtin_popcount(mask);
      numbers += 16;
    }
  }
#endif
  for (; column < width; ++column) {
    columns[count] = static_cast<int32_t>(column);
    count += row[column] != scalar_t(0) ? 1 : 0;
  }
  return count;
}

// to[h] = bias[h] + sum over listed columns of row[column] * matrix[column, h], for kVectors
// vectors.
template <int kBytes, int kVectors, typename scalar_t>
MG2L_INLINE void multiply_listed_block(const scalar_t* row, const int32_t* columns, int32_t count,
                                       const scalar_t* matrix, int64_t padded, const scalar_t* bias,
                                       scalar_t* to) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  V sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = load<V>(bias + v * kLanes);
  for (int32_t i = 0; i < count; ++i) {
    const int64_t column = columns[i];
    const V x = splat<V>(row[column]);
    const scalar_t* from = matrix + column * padded;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] += x * load<V>(from + v * kLanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, sum[v]);
}

// The same for all `padded` columns: row . matrix + bias.
template <int kBytes, typename scalar_t>
MG2L_INLINE void multiply_listed(const scalar_t* row, const int32_t* columns, int32_t count,
                                 const scalar_t* matrix, int64_t padded, const scalar_t* bias,
                                 scalar_t* to) {
  constexpr int64_t kBlock = 2 * kPair * kBytes / sizeof(scalar_t);
  int64_t h = 0;
  for (; h + kBlock <= padded; h += kBlock) {
    multiply_listed_block<kBytes, 2 * kPair>(row, columns, count, matrix + h, padded, bias + h,
                                             to + h);
  }
  if (h < padded) {
    multiply_listed_block<kBytes, kPair>(row, columns, count, matrix + h, padded, bias + h, to + h);
  }
}

// product[i, h] += row[i] * right[h] for the listed columns i.
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_listed_product_t(const scalar_t* row, const int32_t* columns, int32_t count,
                                      const scalar_t* right, int64_t padded, scalar_t* product) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t h = 0; h < padded; h += kPair * kLanes) {
    const V g0 = load<V>(right + h), g1 = load<V>(right + h + kLanes);
    for (int32_t i = 0; i < count; ++i) {
      const V x = splat<V>(row[columns[i]]);
      scalar_t* to = product + columns[i] * padded + h;
      store(to, load<V>(to) + x * g0);
      store(to + kLanes, load<V>(to + kLanes) + x * g1);
    }
  }
}

}  // namespace mg2l
