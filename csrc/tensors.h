// Steps between a checked tensor and a pointer that a kernel walks.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

// A new contiguous tensor on the device of `tensor`. Unlike torch::stable::new_empty it does not
// ask the dispatcher for an operator by name, which takes longer than to allocate.
inline Tensor allocate(const Tensor& tensor, const Sizes& sizes,
                       std::optional<ScalarType> dtype = std::nullopt) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= std::max<int64_t>(sizes[axis], 1);
  }
  int32_t device, type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  if (dtype) type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), type, device,
      static_cast<int32_t>(tensor.get_device_index()), &made));
  return Tensor(made);
}

inline Tensor allocate_like(const Tensor& tensor) { return allocate(tensor, sizes_of(tensor)); }

constexpr int64_t kPage = 4096;     // bytes
constexpr int64_t kAlignment = 64;  // of torch's memory on the CPU

// Two new CPU tensors like `tensor`, which is contiguous, one behind the other in memory; the first
// begins `place` bytes into a page.
inline std::array<Tensor, 2> two_in_page(const Tensor& tensor, int64_t place) {
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  const int64_t stride = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const Tensor memory = allocate(tensor, {2 * stride + kPage}, ScalarType::Byte);
  auto* begin = static_cast<uint8_t*>(memory.mutable_data_ptr());
  const int64_t now = static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kPage);
  begin += (place - now + kPage) % kPage;
  const auto at = [&](uint8_t* data) {
    return torch::stable::from_blob(data, tensor.sizes(), tensor.strides(), tensor.device(),
                                    tensor.scalar_type(), [memory](void*) {});  // keeps the memory
  };
  return {at(begin), at(begin + stride)};
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

// Calls body(zero) with a zero of the type that belongs to a dtype.
template <typename Body>
void for_floating(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) {
    body(0.0F);
  } else {
    body(0.0);
  }
}

}  // namespace mg2l
