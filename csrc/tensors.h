// Steps between a checked tensor and a pointer that a kernel walks.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "checks.h"

namespace mg2l {

// `tensor` itself when it is laid out so already: asking costs less than a call through the
// dispatcher.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// `tensor` repeated along new and 1-sized axes until it has `sizes`, in memory of its own.
inline Tensor expand_contiguous(const Tensor& tensor, const Sizes& sizes) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor), from(sizes), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::expand", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]));
}

// Null for a tensor that was not given.
template <typename scalar_t>
const scalar_t* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const scalar_t*>(tensor->const_data_ptr()) : nullptr;
}

template <typename scalar_t>
scalar_t* data(Tensor& tensor) {
  return static_cast<scalar_t*>(tensor.mutable_data_ptr());
}

template <typename scalar_t>
const scalar_t* data(const Tensor& tensor) {
  return static_cast<const scalar_t*>(tensor.const_data_ptr());
}

}  // namespace mg2l
