// The simulators of environments are one library of plain C functions (mg2l/_simulators.abi3.so)
// without a symbol of Python or torch: any Python loads it with ctypes. Arrays are C-contiguous and
// belong to the caller, who checks their shapes and types (envs/compiled.py); what indexes memory
// is checked there or here before it does.
#pragma once

#include <cstdint>

#define MG2L_EXPORT extern "C" __attribute__((visibility("default")))

namespace mg2l {

// Place of the first value that is not in [low, high), or -1.
MG2L_EXPORT int64_t mg2l_find_outside(const int64_t* values, int64_t count, int64_t low,
                                      int64_t high) noexcept;

}  // namespace mg2l
