// bfloat16 as kernels store it; they compute in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mg2l {

struct BFloat16 {
  uint16_t bits;
};

// To the precision that a kernel accumulates in.
template <typename scalar_t>
MG2L_INLINE scalar_t widen(scalar_t x) {
  return x;
}

template <typename scalar_t>
MG2L_INLINE scalar_t widen(BFloat16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  scalar_t value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// And back, to the nearest, ties to even; NaN stays NaN.
template <typename input_t>
MG2L_INLINE input_t narrow(input_t x) {
  return x;
}

template <typename input_t, std::enable_if_t<std::is_same_v<input_t, BFloat16>, int> = 0>
MG2L_INLINE BFloat16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace mg2l
