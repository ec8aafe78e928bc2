// The rows of `surrogate` and `value_loss` on the CPU, a vector at a time.
#pragma once

#include <cmath>
#include <cstdint>

#include "vec.h"

namespace mg2l {

constexpr int kSums = 3;  // of a block: loss, and what is measured beside it

template <typename scalar_t>
struct ClippedArrays {
  int64_t agents, rows;
  scalar_t weight, clip, delta;  // clip and delta are infinite where there are none
  const scalar_t *first, *second, *third, *weights;  // weights null when not given
  scalar_t* slope;
};

// `x` between two bounds; NaN stays.
template <typename V>
MG2L_INLINE V clamp_lanes(const V& x, const V& low, const V& high) {
  const V above = x < low ? low : x;
  return above > high ? high : above;
}

template <typename V>
MG2L_INLINE V magnitude(const V& x) {
  return x < 0 ? -x : x;
}

// The rows of one vector of the surrogate: writes its slope, adds to loss, kl and fraction.
template <int kLanes, typename scalar_t>
struct SurrogateRows {
  using V = Vec<scalar_t, kLanes>;

  static MG2L_INLINE void add(const ClippedArrays<scalar_t>& a, int64_t at, V (&sums)[kSums]) {
    const V weight = a.weights != nullptr ? load<V>(a.weights + at) : splat<V>(a.weight);
    const V one = splat<V>(scalar_t(1)), clip = splat<V>(a.clip);
    const V change = load<V>(a.first + at) - load<V>(a.second + at);
    // As a square, it overflows and vanishes where exp does.
    const V root = exp_lanes<kLanes>(change * splat<V>(scalar_t(0.5)));
    const V ratio = change == change ? root * root : change;
    const V advantage = load<V>(a.third + at);
    const V plain = ratio * advantage;
    const V clipped = clamp_lanes<V>(ratio, one - clip, one + clip) * advantage;
    const V least = clipped < plain ? clipped : plain;
    store(a.slope + at, V(plain <= clipped ? -weight * plain : V{}));
    const V moved = ratio - one;
    sums[0] -= weight * least;
    sums[1] += weight * (moved - change);
    sums[2] += magnitude(moved) > clip ? weight : V{};
  }
};

// The same of the value loss, which has nothing beside it.
template <int kLanes, typename scalar_t>
struct ValueRows {
  using V = Vec<scalar_t, kLanes>;

  static MG2L_INLINE V loss(const V& error, const V& delta) {
    const V size = magnitude(error), half = splat<V>(scalar_t(0.5));
    return size <= delta ? half * error * error : delta * (size - half * delta);
  }

  static MG2L_INLINE void add(const ClippedArrays<scalar_t>& a, int64_t at, V (&sums)[kSums]) {
    const V weight = a.weights != nullptr ? load<V>(a.weights + at) : splat<V>(a.weight);
    const V clip = splat<V>(a.clip), delta = splat<V>(a.delta);
    const V prediction = load<V>(a.first + at), old = load<V>(a.second + at);
    const V target = load<V>(a.third + at);
    const V error = prediction - target;
    const V moved = std::isinf(a.clip) ? V{} : prediction - old;
    const V plain = loss(error, delta);
    const V clipped = loss(old + clamp_lanes<V>(moved, -clip, clip) - target, delta);
    // Where the clipped one is larger it is constant, unless they differ by rounding.
    const auto inside = magnitude(moved) <= clip;
    const V bounded = clamp_lanes<V>(error, -delta, delta);
    const V larger = plain > clipped ? plain : clipped;  // NaN stays
    store(a.slope + at, V(plain >= clipped ? bounded : V(inside ? bounded : V{})) * weight);
    sums[0] += weight * (inside ? plain : larger);
  }
};

// Writes the slopes of a block of rows, and its sums.
template <template <int, typename> class Rows, int kBytes, typename scalar_t>
MG2L_INLINE void sum_block(const ClippedArrays<scalar_t>& arrays, int64_t begin, int64_t end,
                           double* sums) {
  const ClippedArrays<scalar_t> a = arrays;  // a copy that no store can alias
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(scalar_t));
  Vec<scalar_t, kLanes> wide[kSums] = {};
  Vec<scalar_t, 1> rest[kSums] = {};
  for (; begin + kLanes <= end; begin += kLanes) Rows<kLanes, scalar_t>::add(a, begin, wide);
  for (; begin < end; ++begin) Rows<1, scalar_t>::add(a, begin, rest);
  for (int i = 0; i < kSums; ++i) {
    sums[i] = static_cast<double>(sum_lanes<scalar_t, kLanes>(wide[i]) + rest[i][0]);
  }
}

}  // namespace mg2l
