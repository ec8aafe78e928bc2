// One kernel source, compiled for the x86-64 baseline, for AVX2 with FMA and for AVX-512, and
// chosen when it runs.
//
//   run_simd([&](auto bytes) MG2L_INLINE_LAMBDA { kernel_body<bytes>(...); });
//
// `bytes` is a constant, the width of a vector register. `kernel_body` must be MG2L_INLINE: it is
// inlined into a caller of each instruction set and vectorised there. Other architectures have one
// version.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#define MG2L_INLINE __attribute__((always_inline)) inline
#define MG2L_INLINE_LAMBDA __attribute__((always_inline))

namespace mg2l {

enum class Simd { kBaseline, kAvx2, kAvx512 };

template <int kBytes>
using VectorBytes = std::integral_constant<int, kBytes>;

#if defined(__x86_64__)

// The widest that the processor has and ATEN_CPU_CAPABILITY (as in torch itself) allows.
inline Simd simd() {
  static const Simd widest = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const auto limited_to = [&](const char* name) {
      return limit != nullptr && std::strcmp(limit, name) == 0;
    };
    if (limited_to("default")) return Simd::kBaseline;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Simd::kBaseline;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 && !limited_to("avx2") ? Simd::kAvx512 : Simd::kAvx2;
  }();
  return widest;
}

template <typename Body>
__attribute__((target("avx2,fma"))) void run_avx2(const Body& body) {
  body(VectorBytes<32>());
}

template <typename Body>
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) void run_avx512(
    const Body& body) {
  body(VectorBytes<64>());
}

template <typename Body>
void run_simd(const Body& body) {
  switch (simd()) {
    case Simd::kAvx512:
      return run_avx512(body);
    case Simd::kAvx2:
      return run_avx2(body);
    case Simd::kBaseline:
      return body(VectorBytes<16>());
  }
}

#else

inline Simd simd() { return Simd::kBaseline; }

template <typename Body>
void run_simd(const Body& body) {
  body(VectorBytes<16>());
}

#endif

// Whether there are instructions that multiply bfloat16 and sum in float (AVX512_BF16), and kernels
// have them: Clang checks the operands of instructions before it inlines.
inline bool has_bfloat16() {
#if defined(__x86_64__) && !defined(__clang__)
  static const bool has = simd() == Simd::kAvx512 && __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

}  // namespace mg2l
