// What a kernel may call: barriers, warp operations, atomics, vector types and mathematics, each
// with the name and meaning of CUDA. Included by cuda_host.h.
#pragma once

#include <type_traits>

namespace cuda_host {

// Where a kernel waits, for reports and to distinguish barriers.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class WarpOp { kShuffle, kBallot, kMatch, kSync };

// Waits for the block and returns how many threads passed a true `predicate`.
int barrier(bool predicate, Site site);

// Waits for the lanes of `mask`. kShuffle returns `value` of lane `source`, kBallot the lanes with
// a value other than 0, kMatch the lanes with the same value, kSync nothing.
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int source, Site site);

void before_atomic(void* address, size_t bytes, const void* program_counter);
int lane();

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "warps exchange at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

// `source` is the lane to read; where CUDA would leave the segment of `width` lanes, the own one.
template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  const uint64_t bits = warp_operation(WarpOp::kShuffle, mask, to_bits(value), source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int first_lane(int width) { return lane() & ~(width - 1); }
inline int last_lane(int width) { return lane() | (width - 1); }

}  // namespace cuda_host

#define CUDA_HOST_SITE cuda_host::Site site = cuda_host::Site::here()

inline void __syncthreads(CUDA_HOST_SITE) { cuda_host::barrier(false, site); }
inline int __syncthreads_count(int predicate, CUDA_HOST_SITE) {
  return cuda_host::barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_SITE) {
  return cuda_host::barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_HOST_SITE) {
  return cuda_host::barrier(predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_SITE) {
  cuda_host::warp_operation(cuda_host::WarpOp::kSync, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return static_cast<unsigned>(
      cuda_host::warp_operation(cuda_host::WarpOp::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return __ballot_sync(mask, predicate == 0, site) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_HOST_SITE) {
  return static_cast<unsigned>(cuda_host::warp_operation(cuda_host::WarpOp::kMatch, mask,
                                                         cuda_host::to_bits(value), 0, site));
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_HOST_SITE) {
  return cuda_host::shuffle(mask, value, cuda_host::first_lane(width) | (source & (width - 1)),
                            site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_SITE) {
  const int source = cuda_host::lane() - static_cast<int>(delta);
  const bool inside = source >= cuda_host::first_lane(width);
  return cuda_host::shuffle(mask, value, inside ? source : cuda_host::lane(), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_SITE) {
  const int source = cuda_host::lane() + static_cast<int>(delta);
  const bool inside = source <= cuda_host::last_lane(width);
  return cuda_host::shuffle(mask, value, inside ? source : cuda_host::lane(), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_HOST_SITE) {
  const int source = cuda_host::lane() ^ lanes;
  const bool inside = source <= cuda_host::last_lane(width);
  return cuda_host::shuffle(mask, value, inside ? source : cuda_host::lane(), site);
}

// Memory is sequentially consistent here. The checker knows barriers, __syncwarp and atomics only,
// and calls what relies on fences alone a race.
inline void __threadfence() {}
inline void __threadfence_block() {}

// Threads switch at accesses that the compiler instruments, and never inside these.
#define CUDA_HOST_ATOMIC(name, expression)                                     \
  template <typename T>                                                        \
  CUDA_HOST_RAW T name(T* address, std::common_type_t<T> value) {              \
    cuda_host::before_atomic(address, sizeof(T), __builtin_return_address(0)); \
    const T old = *address;                                                    \
    *address = (expression);                                                   \
    return old;                                                                \
  }
CUDA_HOST_ATOMIC(atomicAdd, old + value)
CUDA_HOST_ATOMIC(atomicSub, old - value)
CUDA_HOST_ATOMIC(atomicExch, value)
CUDA_HOST_ATOMIC(atomicAnd, old& value)
CUDA_HOST_ATOMIC(atomicOr, old | value)
CUDA_HOST_ATOMIC(atomicXor, old ^ value)
CUDA_HOST_ATOMIC(atomicMax, std::max<T>(old, value))
CUDA_HOST_ATOMIC(atomicMin, std::min<T>(old, value))
template <typename T>
CUDA_HOST_RAW T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  cuda_host::before_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

#define CUDA_HOST_VECTOR(scalar, name)                                 \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct alignas(16) name##4 { scalar x, y, z, w; };                   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float)
CUDA_HOST_VECTOR(double, double)
CUDA_HOST_VECTOR(int, int)
CUDA_HOST_VECTOR(unsigned, uint)

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

// By these names CUDA has overloads for float too; those of C are for double alone.
using std::acos, std::asin, std::atan, std::atan2, std::cbrt, std::ceil, std::copysign, std::cos,
    std::cosh, std::erf, std::erfc, std::exp, std::exp2, std::expm1, std::fabs, std::floor,
    std::fma, std::fmax, std::fmin, std::fmod, std::hypot, std::log, std::log10, std::log1p,
    std::log2, std::pow, std::round, std::sin, std::sinh, std::sqrt, std::tan, std::tanh,
    std::trunc;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value ? __builtin_clz(static_cast<unsigned>(value)) : 32; }
inline float rsqrt(float value) { return 1.0F / std::sqrt(value); }
inline double rsqrt(double value) { return 1.0 / std::sqrt(value); }
inline float rsqrtf(float value) { return rsqrt(value); }
inline float __expf(float value) { return std::exp(value); }
inline float __logf(float value) { return std::log(value); }
inline float __fdividef(float numerator, float denominator) { return numerator / denominator; }
inline float __int_as_float(int value) {
  float result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
inline int __float_as_int(float value) {
  int result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
