// Vectors in the compiler's own vector types, and the functions that kernels need of them.
//
// Everything here is inlined into a caller of one instruction set (simd.h); a vector wider than
// its registers is split by the compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mg2l {

// kLanes numbers of type scalar_t, and the integers of their size.
template <typename scalar_t, int kLanes>
struct VecOf;
template <int kLanes>
struct VecOf<float, kLanes> {
  using Bits = int32_t;
  typedef float type __attribute__((vector_size(4 * kLanes)));
  typedef int32_t bits __attribute__((vector_size(4 * kLanes)));
};
template <int kLanes>
struct VecOf<double, kLanes> {
  using Bits = int64_t;
  typedef double type __attribute__((vector_size(8 * kLanes)));
  typedef int64_t bits __attribute__((vector_size(8 * kLanes)));
};
template <typename scalar_t, int kLanes>
using Vec = typename VecOf<scalar_t, kLanes>::type;
template <typename scalar_t, int kLanes>
using VecBits = typename VecOf<scalar_t, kLanes>::bits;

template <typename V, typename scalar_t>
MG2L_INLINE V load(const scalar_t* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename scalar_t>
MG2L_INLINE void store(scalar_t* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

// Stores a vector past the caches, to an address that is a multiple of its size. Other threads see
// it after `end_streams`.
template <typename V, typename scalar_t>
MG2L_INLINE void stream(scalar_t* to, const V& v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<V*>(to));
#elif defined(__x86_64__)
  if constexpr (sizeof(V) == 16) {
    asm("movntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "x"(v));
  } else {
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "v"(v));
  }
#else
  store(to, v);
#endif
}

MG2L_INLINE void end_streams() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

// Through memory, which becomes one broadcast; `V{} + x` becomes an insertion per lane, because
// the compiler takes it apart before it knows the instruction set.
template <typename V, typename scalar_t>
MG2L_INLINE V splat(scalar_t x) {
  scalar_t lanes[sizeof(V) / sizeof(scalar_t)];
  for (scalar_t& lane : lanes) lane = x;
  return load<V>(lanes);
}

// A constant that the compiler reads again wherever it is used. Kept in a register it would cost
// the loop around it an accumulator.
template <typename V, typename scalar_t>
MG2L_INLINE V reread(const scalar_t& constant) {
  const scalar_t* from = &constant;
  asm volatile("" : "+r"(from));
  return splat<V>(*from);
}

// An address that the compiler keeps in a register: what lies near it is reached from there, not
// by sums that it would keep on the stack.
template <typename T>
MG2L_INLINE T* pinned(T* address) {
  asm("" : "+r"(address));
  return address;
}

// Bytes as the integers of a vector. GCC takes a conversion apart, lane by lane, before it knows
// the instruction set; hence an instruction. Clang vectorises the loop after inlining.
template <typename Bits>
MG2L_INLINE Bits widen(const uint8_t* from) {
  constexpr int kLanes = sizeof(Bits) / sizeof(Bits{}[0]);
  Bits bits;
#if defined(__x86_64__) && !defined(__clang__)
  if constexpr (sizeof(Bits) > 16) {
    const auto* bytes = reinterpret_cast<const uint8_t (*)[kLanes]>(from);
    if constexpr (sizeof(Bits{}[0]) == 4) {
      asm("vpmovzxbd %1, %0" : "=v"(bits) : "m"(*bytes));
    } else {
      asm("vpmovzxbq %1, %0" : "=v"(bits) : "m"(*bytes));
    }
    return bits;
  }
#endif
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = from[lane];
  return bits;
}

// Sum of the lanes, in halves: the same for every instruction set of one width. Halves are vectors
// for as long as every processor has such vectors.
template <typename scalar_t, int kLanes, typename V>
MG2L_INLINE scalar_t sum_lanes(const V& v) {
  if constexpr (kLanes == 1) {
    return v[0];
  } else if constexpr (kLanes * sizeof(scalar_t) > 16) {
    using Half = Vec<scalar_t, kLanes / 2>;
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return sum_lanes<scalar_t, kLanes / 2>(halves[0] + halves[1]);
  } else if constexpr (kLanes == 2) {
    return v[0] + v[1];
  } else {
    static_assert(kLanes == 4);
#if defined(__clang__)
    const V pairs = v + __builtin_shufflevector(v, v, 2, 3, 0, 1);
#else
    const V pairs = v + __builtin_shuffle(v, VecBits<scalar_t, 4>{2, 3, 0, 1});
#endif
    return pairs[0] + pairs[1];
  }
}

// exp for float: argument reduction to |r| <= log(2) / 2, a polynomial of degree 6 (relative error
// below 2e-7), and the power of two added to the exponent. Below -87 it is exp(-87), not 0.
template <int kLanes>
MG2L_INLINE Vec<float, kLanes> exp_lanes(Vec<float, kLanes> x) {
  using V = Vec<float, kLanes>;
  using I = VecBits<float, kLanes>;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: the integer lies in the low bits
  x = x < -87.0F ? splat<V>(-87.0F) : x;
  x = x > 88.0F ? splat<V>(88.0F) : x;
  const V shifted = x * 1.44269504F + kRound;
  const V n = shifted - kRound;
  const V r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  V p = r * 1.3981999507e-3F + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + (r + 1.0F);
  I bits, exponent;
  std::memcpy(&bits, &p, sizeof(V));
  std::memcpy(&exponent, &shifted, sizeof(V));
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof(V));
  return p;
}

// exp for double, which only checks of gradients use: a lane at a time.
template <int kLanes>
MG2L_INLINE Vec<double, kLanes> exp_lanes(Vec<double, kLanes> x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// What a GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415) and its derivative are made of.
template <typename V>
struct Gelu {
  V value, slope;
};

constexpr double kSqrtHalf = 0.70710678118654752;
constexpr double kInvSqrt2Pi = 0.39894228040143268;
constexpr double kSqrt2OverPi = 0.79788456080286536;
constexpr double kTanhCubic = 0.044715;

// Phi(x) - 1/2 = x P(x^2) / Q(x^2) on [-5.4, 5.4], fitted to 2e-8; constant beyond.
inline constexpr float kPhiEnd = 5.4F, kPhiStart = -5.4F, kHalf = 0.5F;
inline constexpr float kPhiP[] = {1.161013108e-10F, -2.225696019e-08F, 3.133493873e-06F,
                                  1.589654418e-04F, 4.435081966e-03F,  3.478581904e-02F,
                                  3.989421787e-01F};
inline constexpr float kPhiQ[] = {5.867861762e-05F, 1.763635907e-03F, 2.843041924e-02F,
                                  2.538600712e-01F, 1.0F};

// coefficients[0] t^n + ... + coefficients[n] of several vectors, each coefficient read once.
template <typename V, int kTerms, int kCount, typename scalar_t>
MG2L_INLINE void polynomials(const scalar_t (&coefficients)[kTerms], const V (&t)[kCount],
                             V (&value)[kCount]) {
  const V lead = reread<V>(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) value[i] = lead;
#pragma GCC unroll 8
  for (int term = 1; term < kTerms; ++term) {
    const V coefficient = reread<V>(coefficients[term]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) value[i] = value[i] * t[i] + coefficient;
  }
}

// x Phi(x) alone, of an even number of vectors: two share a division.
template <int kLanes, int kCount>
MG2L_INLINE void gelu_exact_values(const Vec<float, kLanes> (&x)[kCount],
                                   Vec<float, kLanes> (&y)[kCount]) {
  using V = Vec<float, kLanes>;
  static_assert(kCount % 2 == 0);
  V bounded[kCount], t[kCount], p[kCount], q[kCount];
  const V start = reread<V>(kPhiStart), end = reread<V>(kPhiEnd);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const V above = x[i] < start ? start : x[i];
    bounded[i] = above > end ? end : above;
    t[i] = bounded[i] * bounded[i];
  }
  polynomials(kPhiP, t, p);
  polynomials(kPhiQ, t, q);
  const V half = reread<V>(kHalf);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; i += 2) {
    const V inverse = 1.0F / (q[i] * q[i + 1]);
    y[i] = x[i] * (bounded[i] * p[i] * (q[i + 1] * inverse) + half);
    y[i + 1] = x[i + 1] * (bounded[i + 1] * p[i + 1] * (q[i] * inverse) + half);
  }
}

template <int kLanes, int kCount>
MG2L_INLINE void gelu_exact_values(const Vec<double, kLanes> (&x)[kCount],
                                   Vec<double, kLanes> (&y)[kCount]) {
  for (int i = 0; i < kCount; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      y[i][lane] = x[i][lane] * 0.5 * std::erfc(-x[i][lane] * kSqrtHalf);
    }
  }
}

// x Phi(x). The upper tail of Phi comes from exp(-x^2 / 2), which the slope needs as well
// (Abramowitz & Stegun, 7.1.26, absolute error below 1.5e-7).
template <int kLanes>
MG2L_INLINE Gelu<Vec<float, kLanes>> gelu_exact(const Vec<float, kLanes>& x) {
  using V = Vec<float, kLanes>;
  const V magnitude = x < 0.0F ? -x : x;
  const V bell = exp_lanes<kLanes>(x * x * -0.5F);
  const V t = 1.0F / (magnitude * float(0.3275911 * kSqrtHalf) + 1.0F);
  V p = t * 0.5307027145F - 0.7265760135F;  // the published coefficients, halved
  p = p * t + 0.7107068705F;
  p = p * t - 0.142248368F;
  p = p * t + 0.127414796F;
  const V tail = p * t * bell;
  const V phi = x < 0.0F ? tail : 1.0F - tail;
  return {x * phi, phi + x * bell * float(kInvSqrt2Pi)};
}

template <int kLanes>
MG2L_INLINE Gelu<Vec<double, kLanes>> gelu_exact(const Vec<double, kLanes>& x) {
  Gelu<Vec<double, kLanes>> y;
  for (int lane = 0; lane < kLanes; ++lane) {
    const double phi = 0.5 * std::erfc(-x[lane] * kSqrtHalf);
    y.value[lane] = x[lane] * phi;
    y.slope[lane] = phi + x[lane] * std::exp(-0.5 * x[lane] * x[lane]) * kInvSqrt2Pi;
  }
  return y;
}

// 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <int kLanes, typename scalar_t>
MG2L_INLINE Gelu<Vec<scalar_t, kLanes>> gelu_tanh(const Vec<scalar_t, kLanes>& x) {
  using V = Vec<scalar_t, kLanes>;
  constexpr scalar_t kTwice = scalar_t(2 * kSqrt2OverPi);
  const V square = x * x;
  const V u2 = x * kTwice * (square * scalar_t(kTanhCubic) + scalar_t(1));
  const V s = scalar_t(1) / (exp_lanes<kLanes>(-u2) + scalar_t(1));
  const V du2 = kTwice * (square * scalar_t(3 * kTanhCubic) + scalar_t(1));
  return {x * s, s + x * s * (scalar_t(1) - s) * du2};
}

}  // namespace mg2l
