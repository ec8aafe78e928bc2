// Pairs of bfloat16, as AVX512_BF16 multiplies them: numbers that a product sums lie beside each
// other, two to a lane, and each lane adds both products to a float. There is code for it where
// `kHasPairs`, which is run where `has_bfloat16()` (simd.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace mg2l {

// Two bfloat16, the first in the lower half.
struct Pair {
  uint32_t bits;
};

inline int64_t pairs_of(int64_t count) { return (count + 1) / 2; }

#if defined(__x86_64__) && !defined(__clang__)

template <int kBytes, typename scalar_t>
constexpr bool kHasPairs = kBytes == 64 && std::is_same_v<scalar_t, float>;

// sum += x * w, of both halves of the lanes of x and w.
MG2L_INLINE void add_pair_product(Vec<float, 16>& sum, const Vec<float, 16>& x,
                                  const Vec<float, 16>& w) {
  Vec<float, 16> total = sum;  // of its own: an element of an array would stay in memory
  asm("vdpbf16ps %2, %1, %0" : "+v"(total) : "v"(x), "v"(w));
  sum = total;
}

// 32 neighbours, rounded to the nearest, ties to even.
MG2L_INLINE void pair_neighbours(const float* from, Pair* to) {
  Vec<float, 16> both;
  const auto low = load<Vec<float, 16>>(from), high = load<Vec<float, 16>>(from + 16);
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
  store(to, both);
}

// 16 numbers of a row, each with that of the next row.
MG2L_INLINE void pair_rows(const float* from, const float* next, Pair* to) {
  alignas(64) static constexpr uint16_t kTurns[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  Vec<float, 16> both;
  const auto low = load<Vec<float, 16>>(from), high = load<Vec<float, 16>>(next);
  const auto turns = load<Vec<float, 16>>(kTurns);
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
  asm("vpermw %1, %2, %0" : "=v"(both) : "v"(both), "v"(turns));
  store(to, both);
}

#else

template <int kBytes, typename scalar_t>
constexpr bool kHasPairs = false;

// Declared for code that is never made.
void add_pair_product(Vec<float, 16>& sum, const Vec<float, 16>& x, const Vec<float, 16>& w);
void pair_neighbours(const float* from, Pair* to);
void pair_rows(const float* from, const float* next, Pair* to);

#endif

// sum += x * w for numbers, or for pairs.
template <typename element_t, typename V>
MG2L_INLINE void add_product(V& sum, const V& x, const V& w) {
  if constexpr (std::is_same_v<element_t, Pair>) {
    add_pair_product(sum, x, w);
  } else {
    sum += x * w;
  }
}

// Rows [count, width] to [count, pairs of width], for products that sum along rows. `to` has
// whole vectors, which are filled up with zeros.
MG2L_INLINE void pair_along(const float* from, int64_t from_stride, int64_t count, int64_t width,
                            Pair* to, int64_t to_stride) {
  for (int64_t t = 0; t < count; ++t, from += from_stride, to += to_stride) {
    int64_t i = 0;
    for (; i + 32 <= width; i += 32) pair_neighbours(from + i, to + i / 2);
    if (i == width) continue;
    float rest[32] = {};
    std::copy_n(from + i, width - i, rest);
    pair_neighbours(rest, to + i / 2);
  }
}

// Rows [count, width] to [pairs of count, width], for products that sum over rows; likewise.
MG2L_INLINE void pair_across(const float* from, int64_t from_stride, int64_t count, int64_t width,
                             Pair* to, int64_t to_stride) {
  static constexpr float kZeros[16] = {};
  for (int64_t t = 0; t < count; t += 2, from += 2 * from_stride, to += to_stride) {
    const bool alone = t + 1 == count;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
      pair_rows(from + i, alone ? kZeros : from + from_stride + i, to + i);
    }
    if (i == width) continue;
    float rest[2][16] = {};
    std::copy_n(from + i, width - i, rest[0]);
    if (!alone) std::copy_n(from + from_stride + i, width - i, rest[1]);
    pair_rows(rest[0], rest[1], to + i);
  }
}

}  // namespace mg2l
