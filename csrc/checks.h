// What operators say about tensors they cannot take. Messages name the operator, the argument, what
// came and what was expected; they reach Python as RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd.h"

// Like STD_TORCH_CHECK, without the path of the source file in front of the message.
#define MG2L_CHECK(condition, ...)                       \
  do {                                                   \
    if (!(condition)) ::mg2l::detail::fail(__VA_ARGS__); \
  } while (false)

namespace mg2l {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

namespace detail {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace detail

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

// "[5, 3]", as torch prints sizes.
inline std::string to_text(const Sizes& sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t axis = 0; axis < sizes.size(); ++axis) text << (axis ? ", " : "") << sizes[axis];
  text << "]";
  return text.str();
}

inline const char* to_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string name = tensor.is_cuda() ? "cuda:" : "device ";
  return name + std::to_string(static_cast<int>(tensor.get_device_index()));
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  MG2L_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", name,
             " must be float32 or float64, got ", to_text(dtype));
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype) {
  MG2L_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " must be ", to_text(dtype), ", got ",
             to_text(tensor.scalar_type()));
}

// `shape` says in words where the expected sizes come from, e.g. "[T + 1, *B]".
inline void check_sizes(const char* op, const char* name, const Tensor& tensor, const Sizes& sizes,
                        const char* shape) {
  MG2L_CHECK(sizes_of(tensor) == sizes, op, ": ", name, " must have shape ", shape, " = ",
             to_text(sizes), ", got ", to_text(sizes_of(tensor)));
}

// Whether `tensor` broadcasts to `sizes` (it may have fewer axes, and 1 where `sizes` has more).
inline void check_broadcasts(const char* op, const char* name, const Tensor& tensor,
                             const Sizes& sizes, const char* shape) {
  const Sizes own = sizes_of(tensor);
  bool fits = own.size() <= sizes.size();
  for (size_t back = 1; fits && back <= own.size(); ++back) {
    const int64_t size = own[own.size() - back];
    fits = size == 1 || size == sizes[sizes.size() - back];
  }
  MG2L_CHECK(fits, op, ": ", name, " must broadcast to ", shape, " = ", to_text(sizes), ", got ",
             to_text(own));
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor,
                              const char* other_name, const Tensor& other) {
  MG2L_CHECK(tensor.is_cpu() == other.is_cpu() && tensor.is_cuda() == other.is_cuda() &&
                 tensor.get_device_index() == other.get_device_index(),
             op, ": ", name, " must be on the device of ", other_name, " (", device_text(other),
             "), got ", device_text(tensor));
}

// A tensor of the device of another one, of a given dtype (that of the other by default) and sizes.
inline void check_like(const char* op, const char* name, const Tensor& tensor,
                       const char* other_name, const Tensor& other, const Sizes& sizes,
                       const char* shape, std::optional<ScalarType> dtype = std::nullopt) {
  check_dtype(op, name, tensor, dtype.value_or(other.scalar_type()));
  check_same_device(op, name, tensor, other_name, other);
  check_sizes(op, name, tensor, sizes, shape);
}

// Products of float32 whose operands are rounded to bfloat16: by instructions that few CPUs have.
inline void check_bfloat16(const char* op, const char* name, const Tensor& tensor, bool wanted) {
  if (!wanted) return;
  MG2L_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float, op, ": with bfloat16 ",
             name, " must be float32 on the CPU, got ", to_text(tensor.scalar_type()), " on ",
             device_text(tensor));
  MG2L_CHECK(has_bfloat16(), op, ": bfloat16 needs a CPU with avx512_bf16, and operators that GCC ",
             "compiled");
}

inline void check_unit_interval(const char* op, const char* name, double value) {
  MG2L_CHECK(value >= 0 && value <= 1, op, ": ", name, " must be in [0, 1], got ", value);
}

}  // namespace mg2l
