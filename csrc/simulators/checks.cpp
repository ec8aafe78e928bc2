#include <algorithm>

#include "api.h"

namespace mg2l {

MG2L_EXPORT int64_t mg2l_find_outside(const int64_t* values, int64_t count, int64_t low,
                                      int64_t high) noexcept {
  const int64_t* end = values + count;
  const auto wrong = [=](int64_t value) { return value < low || value >= high; };
  const int64_t* found = std::find_if(values, end, wrong);
  return found == end ? -1 : found - values;
}

}  // namespace mg2l
