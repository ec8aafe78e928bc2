// Numbers from a NumPy bit generator, drawn as numpy.random.Generator draws them, so that an
// episode begins as the package's does with the same generator (`integers` and `permutation`,
// NumPy 1.17 and newer: bounded integers by Lemire's method on 32 bits, arXiv:1805.10941).

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace mg2l {

// A bit generator of NumPy, as its C interface hands it out (numpy/random/bitgen.h).
struct BitGenerator {
  void* state;
  uint64_t (*next_uint64)(void* state);
  uint32_t (*next_uint32)(void* state);
  double (*next_double)(void* state);
  uint64_t (*next_raw)(void* state);
};

class Random {
 public:
  Random() = default;  // of none: it must not draw
  explicit Random(const BitGenerator* bits) : bits_(bits) {}

  // Uniform in [low, high); as `integers`, it draws nothing where there is no choice.
  int32_t integer(int32_t low, int32_t high) const {
    const auto count = static_cast<uint32_t>(high - low);
    if (count == 1) return low;
    uint64_t wide = uint64_t{bits_->next_uint32(bits_->state)} * count;
    if (static_cast<uint32_t>(wide) < count) {
      const uint32_t biased = (0u - count) % count;  // 2^32 mod count
      while (static_cast<uint32_t>(wide) < biased) {
        wide = uint64_t{bits_->next_uint32(bits_->state)} * count;
      }
    }
    return low + static_cast<int32_t>(wide >> 32);
  }

  // 0, ..., count - 1 in a random order.
  std::vector<int32_t> permutation(int32_t count) const {
    std::vector<int32_t> order(count);
    for (int32_t i = 0; i < count; ++i) order[i] = i;
    for (int32_t i = count - 1; i > 0; --i) std::swap(order[i], order[up_to(i)]);
    return order;
  }

 private:
  // Uniform in [0, highest]: bits are masked, and drawn again where they are too large.
  int32_t up_to(int32_t highest) const {
    uint32_t mask = 1;
    while (mask < static_cast<uint32_t>(highest)) mask = 2 * mask + 1;
    while (true) {
      const uint32_t value = bits_->next_uint32(bits_->state) & mask;
      if (value <= static_cast<uint32_t>(highest)) return static_cast<int32_t>(value);
    }
  }

  const BitGenerator* bits_ = nullptr;
};

}  // namespace mg2l
