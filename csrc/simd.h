// One kernel source, compiled for the x86-64 baseline and for AVX2 with FMA, chosen when it runs.
//
//   run_simd([&]() MG2L_INLINE_LAMBDA { kernel_body(...); });
//
// `kernel_body` must be MG2L_INLINE: it is inlined into a caller of either instruction set and
// vectorised there. Other architectures have one version.
#pragma once

#include <cstdlib>
#include <cstring>

#define MG2L_INLINE __attribute__((always_inline)) inline
#define MG2L_INLINE_LAMBDA __attribute__((always_inline))

namespace mg2l {

#if defined(__x86_64__)

// ATEN_CPU_CAPABILITY=default turns AVX2 off, here as in torch itself.
inline bool use_avx2() {
  static const bool use = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const bool allowed = limit == nullptr || std::strcmp(limit, "default") != 0;
    return allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  return use;
}

template <typename Body>
__attribute__((target("avx2,fma"))) void run_avx2(const Body& body) {
  body();
}

template <typename Body>
void run_simd(const Body& body) {
  if (use_avx2()) {
    run_avx2(body);
  } else {
    body();
  }
}

#else

inline bool use_avx2() { return false; }

template <typename Body>
void run_simd(const Body& body) {
  body();
}

#endif

}  // namespace mg2l
