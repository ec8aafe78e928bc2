// Products of small matrices whose operands stay in L1: what `encode_context` and `pairwise_lse` do
// most of the time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "pairs.h"
#include "vec.h"

namespace mg2l {

constexpr int kPair = 2;  // vectors of columns that a micro-kernel holds

// A micro-kernel takes this many rows: with two vectors each, all registers but four.
template <int kBytes>
constexpr int kRows = kBytes == 64 ? 12 : 6;

// Columns come in whole pairs of the widest vectors.
template <typename scalar_t>
constexpr int64_t padded_width(int64_t width) {
  constexpr int64_t kStep = kPair * 64 / sizeof(scalar_t);
  return (width + kStep - 1) / kStep * kStep;
}

// Rows of a matrix, of numbers or of pairs.
template <typename element_t>
struct Rows {
  const element_t* data;
  int64_t stride, width;
};

// `multiply` of pairs. Not inlined: callers have constants that want registers, too, and then some
// of the sums would stay in memory.
template <int kMicro>
#if defined(__x86_64__)
__attribute__((noinline, target("avx512f")))
#endif
void multiply_pairs(const Rows<Pair>& rows, const Pair* matrix, int64_t padded,
                    const Vec<float, 16> (&start)[kPair],
                    Vec<float, 16> (&product)[kMicro][kPair]) {
  using V = Vec<float, 16>;
  V sum[kMicro][kPair];
#pragma GCC unroll 12
  for (int row = 0; row < kMicro; ++row) {
    sum[row][0] = start[0];
    sum[row][1] = start[1];
  }
  const Pair* inputs = rows.data;
  const int64_t stride = rows.stride;
  for (int64_t i = 0; i < rows.width; ++i, matrix += padded) {
    const V w0 = load<V>(matrix), w1 = load<V>(matrix + 16);
#pragma GCC unroll 12
    for (int row = 0; row < kMicro; ++row) {
      const V x = splat<V>(inputs[row * stride + i]);
      add_pair_product(sum[row][0], x, w0);
      add_pair_product(sum[row][1], x, w1);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kMicro; ++row) {
    product[row][0] = sum[row][0];
    product[row][1] = sum[row][1];
  }
}

// rows . matrix + start, `matrix` of [rows.width, padded], for kRows rows from `first` on and two
// vectors of columns from `h` on, in registers.
template <int kBytes, typename element_t, typename V>
MG2L_INLINE void multiply(const Rows<element_t>& rows, const element_t* matrix, int64_t padded,
                          int64_t first, int64_t h, const V (&start)[kPair],
                          V (&sum)[kRows<kBytes>][kPair]) {
  constexpr int kLanes = kBytes / sizeof(element_t), kMicro = kRows<kBytes>;
  if constexpr (std::is_same_v<element_t, Pair>) {
    const Rows<Pair> own{rows.data + first * rows.stride, rows.stride, rows.width};
    V product[kMicro][kPair];  // `sum` may be in registers
    multiply_pairs<kMicro>(own, matrix + h, padded, start, product);
#pragma GCC unroll 12
    for (int row = 0; row < kMicro; ++row) {
      sum[row][0] = product[row][0];
      sum[row][1] = product[row][1];
    }
    return;
  }
#pragma GCC unroll 12
  for (int row = 0; row < kMicro; ++row) {
    sum[row][0] = start[0];
    sum[row][1] = start[1];
  }
  const element_t* inputs = rows.data + first * rows.stride;
  const int64_t stride = rows.stride;
  for (int64_t i = 0; i < rows.width; ++i) {
    const V w0 = load<V>(matrix + i * padded + h);
    const V w1 = load<V>(matrix + i * padded + h + kLanes);
#pragma GCC unroll 12
    for (int row = 0; row < kMicro; ++row) {
      const V x = splat<V>(inputs[row * stride + i]);
      sum[row][0] += x * w0;
      sum[row][1] += x * w1;
    }
  }
}

// product[i, h] += sum over t < count of left[t, i] * right[t, h], `right` and `product` of
// `padded` columns.
template <int kBytes, typename element_t, typename scalar_t>
MG2L_INLINE void add_product_t(const Rows<element_t>& left, const element_t* right, int64_t padded,
                               int64_t count, scalar_t* product) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  const int64_t width = left.width, stride = left.stride;
  for (int64_t h = 0; h < padded; h += kPair * kLanes) {
    for (int64_t first = 0; first < width; first += kMicro) {
      // The last block reaches back over the one before it, and adds only what is its own.
      const int64_t start = std::max<int64_t>(std::min<int64_t>(first, width - kMicro), 0);
      V sum[kMicro][kPair];
#pragma GCC unroll 12
      for (int i = 0; i < kMicro; ++i) sum[i][0] = sum[i][1] = V{};
      if (width >= kMicro) {
        for (int64_t t = 0; t < count; ++t) {
          const V g0 = load<V>(right + t * padded + h),
                  g1 = load<V>(right + t * padded + h + kLanes);
#pragma GCC unroll 12
          for (int i = 0; i < kMicro; ++i) {
            const V x = splat<V>(left.data[t * stride + start + i]);
            add_product<element_t>(sum[i][0], x, g0);
            add_product<element_t>(sum[i][1], x, g1);
          }
        }
      } else {
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t i = 0; i < width; ++i) {
            const V x = splat<V>(left.data[t * stride + i]);
            add_product<element_t>(sum[i][0], x, load<V>(right + t * padded + h));
            add_product<element_t>(sum[i][1], x, load<V>(right + t * padded + h + kLanes));
          }
        }
      }
      for (int64_t i = first - start; i < std::min<int64_t>(kMicro, width - start); ++i) {
        scalar_t* row = product + (start + i) * padded + h;
        store(row, load<V>(row) + sum[i][0]);
        store(row + kLanes, load<V>(row + kLanes) + sum[i][1]);
      }
    }
  }
}

}  // namespace mg2l
