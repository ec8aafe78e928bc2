// The device a binding works on: its guard, its stream, and launches that failed.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "launchers.h"

namespace mg2l {

using torch::stable::accelerator::DeviceGuard;

// The stream that torch puts work on now, a cudaStream_t.
inline void* current_stream(int32_t device) {
  return torch::stable::accelerator::getCurrentStream(device).nativeHandle();
}

inline void check_launch(const char* op, int status) {
  MG2L_CHECK(status == 0, op, ": the launch failed: ", mg2l_error_string(status));
}

}  // namespace mg2l
