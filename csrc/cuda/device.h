// The device a binding works on: its guard, its stream, and launches that failed.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "launchers.h"

namespace mg2l {

#ifdef MG2L_CUDA_HOST  // kernels run on the CPU, in tests/cuda_host
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline void* current_stream(int32_t) { return nullptr; }
#else
using torch::stable::accelerator::DeviceGuard;

// The stream that torch puts work on now, a cudaStream_t.
inline void* current_stream(int32_t device) {
  return torch::stable::accelerator::getCurrentStream(device).nativeHandle();
}
#endif

inline void check_launch(const char* op, int status) {
  MG2L_CHECK(status == 0, op, ": the launch failed: ", mg2l_error_string(status));
}

// Calls launch(launcher, zero) with what belongs to a dtype.
template <typename Launch, typename Floats, typename Doubles>
void for_launcher(ScalarType dtype, Floats floats, Doubles doubles, const Launch& launch) {
  if (dtype == ScalarType::Float) {
    launch(floats, 0.0F);
  } else {
    launch(doubles, 0.0);
  }
}

}  // namespace mg2l
