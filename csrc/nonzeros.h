// Products of rows that are mostly zeros: the columns that are not 0 are listed first.
#pragma once

#include <cstdint>
#include <vector>

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

// sum[h] = bias[h] + sum over listed columns of row[column] * matrix[column, h], for kVectors
// vectors, of which pairs lie `step` numbers apart in the matrix.
template <int kBytes, typename scalar_t, typename V, int kVectors>
MG2L_INLINE void multiply_listed_block(const scalar_t* row, const int32_t* columns, int32_t count,
                                       const scalar_t* matrix, int64_t padded, int64_t step,
                                       const scalar_t* bias, V (&sum)[kVectors]) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = load<V>(bias + v * kLanes);
  for (int32_t i = 0; i < count; ++i) {
    const int64_t column = columns[i];
    const V x = splat<V>(row[column]);
    const scalar_t* from = matrix + column * padded;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += x * load<V>(from + v / kPair * step + v % kPair * kLanes);
    }
  }
}

// The same for all `padded` columns: row . matrix + bias.
template <int kBytes, typename scalar_t>
MG2L_INLINE void multiply_listed(const scalar_t* row, const int32_t* columns, int32_t count,
                                 const scalar_t* matrix, int64_t padded, const scalar_t* bias,
                                 scalar_t* to) {
  constexpr int64_t kLanes = kBytes / sizeof(scalar_t), kStep = kPair * kLanes;
  using V = Vec<scalar_t, kLanes>;
  int64_t h = 0;
  for (; h + 2 * kStep <= padded; h += 2 * kStep) {
    V sum[2 * kPair];
    multiply_listed_block<kBytes>(row, columns, count, matrix + h, padded, kStep, bias + h, sum);
    std::memcpy(to + h, sum, sizeof(sum));
  }
  if (h < padded) {
    V sum[kPair];
    multiply_listed_block<kBytes>(row, columns, count, matrix + h, padded, kStep, bias + h, sum);
    std::memcpy(to + h, sum, sizeof(sum));
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

// product[i, h] += sum over t < count of left_t[i, t] * right[t, h] for i < width, where `left_t`
// is mostly zeros: the sums of `add_product_t`, in the same order. `listed` has room for a vector
// more than there are rows.
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_sparse_product(const scalar_t* left_t, int64_t stride, int64_t width,
                                    int64_t count, const scalar_t* right, int64_t padded,
                                    scalar_t* product, int32_t* listed) {
  constexpr int64_t kLanes = kBytes / sizeof(scalar_t), kStep = kPair * kLanes;
  static constexpr scalar_t kZeros[2 * kStep] = {};
  const auto add = [&](int64_t i, int64_t h, int32_t rows, auto& sum) MG2L_INLINE_LAMBDA {
    multiply_listed_block<kBytes>(left_t + i * stride, listed, rows, right + h, padded, kStep,
                                  kZeros, sum);
    scalar_t* to = product + i * padded + h;
    for (auto& part : sum) {
      store(to, load<Vec<scalar_t, kLanes>>(to) + part);
      to += kLanes;
    }
  };
  for (int64_t i = 0; i < width; ++i) {
    const int32_t rows = list_nonzeros<kBytes>(left_t + i * stride, count, listed);
    int64_t h = 0;
    for (; h + 2 * kStep <= padded && rows > 0; h += 2 * kStep) {
      Vec<scalar_t, kLanes> sum[2 * kPair];
      add(i, h, rows, sum);
    }
    if (h < padded && rows > 0) {
      Vec<scalar_t, kLanes> sum[kPair];
      add(i, h, rows, sum);
    }
  }
}

// Which inputs of a tile's rows are not 0. Observations that are maps or one-hot codes are mostly
// zeros, and products of the others alone take a fraction of the time.
template <typename scalar_t>
struct NonZeros {
  static constexpr int64_t kLeast = 64;  // inputs, below which a list is not worth it
  static constexpr int64_t kShare = 3;   // a list pays where at most one in so many is not 0

  bool listed = false;  // whether the tile has lists
  int64_t inputs;
  std::vector<int32_t> columns;  // [rows, inputs and a vector]
  std::vector<int32_t> counts;   // [rows]

  NonZeros(int64_t inputs_, int64_t rows)
      : inputs(inputs_), columns(inputs >= kLeast ? rows * (inputs + 16) : 0), counts(rows) {}

  // Whether a list of the first row's shows that lists pay.
  static bool pays(int64_t nonzeros, int64_t inputs) {
    return inputs >= kLeast && nonzeros * kShare <= inputs;
  }

  const int32_t* row(int64_t t) const { return columns.data() + t * (inputs + 16); }

  // Lists those of a tile, unless its first row has too many.
  template <int kBytes>
  MG2L_INLINE void list(const scalar_t* tile, int64_t stride, int64_t count) {
    listed = !columns.empty();
    for (int64_t t = 0; t < count && listed; ++t) {
      counts[t] =
          list_nonzeros<kBytes>(tile + t * stride, inputs, columns.data() + t * (inputs + 16));
      listed = t > 0 || pays(counts[t], inputs);
    }
  }
};

}  // namespace mg2l
