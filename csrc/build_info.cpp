// How the CPU operators were built and run; read by mg2l/ops/native.py through ctypes.
#include "simd.h"

#if defined(__clang__)
#define MG2L_COMPILER "clang " __clang_version__
#else
#define MG2L_COMPILER "gcc " __VERSION__
#endif

extern "C" __attribute__((visibility("default"))) const char* mg2l_cpu_build() {
  switch (mg2l::simd()) {
    case mg2l::Simd::kAvx512:
      return mg2l::has_bfloat16() ? MG2L_COMPILER ", AVX-512 with bfloat16"
                                  : MG2L_COMPILER ", AVX-512";
    case mg2l::Simd::kAvx2:
      return MG2L_COMPILER ", AVX2";
    default:
      return MG2L_COMPILER ", baseline instructions";
  }
}

extern "C" __attribute__((visibility("default"))) int mg2l_has_bfloat16() {
  return mg2l::has_bfloat16() ? 1 : 0;
}
