// Counters in memory that processes of one machine share (mg2l/core/shared_memory.py): who waits
// for one sees all that was written before it was set. Plain C functions, called by ctypes.
#include <sched.h>
#include <time.h>

#include <cstdint>

#define MG2L_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSpins = 1000;              // looks at a counter before the core is offered to others
constexpr int64_t kYielding = 2'000'000;  // time after which the core is left to others [ns]
constexpr int64_t kSleep = 50'000;        // length of a sleep from then on [ns]

int64_t now() noexcept {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1'000'000'000 * static_cast<int64_t>(time.tv_sec) + time.tv_nsec;
}

}  // namespace

MG2L_EXPORT void mg2l_set_counter(int64_t* counter, int64_t value) noexcept {
  __atomic_store_n(counter, value, __ATOMIC_RELEASE);
}

// Wait until so many counters, `stride` apart, have all reached `value`. Returns -1, or after a
// time the place of one that has not.
MG2L_EXPORT int64_t mg2l_await_counters(const int64_t* counters, int64_t count, int64_t stride,
                                        int64_t value, int64_t nanoseconds) noexcept {
  int64_t start = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int spins = 0; __atomic_load_n(counters + i * stride, __ATOMIC_ACQUIRE) < value; ++spins) {
      if (spins < kSpins) continue;
      const int64_t time = now();
      if (start == 0) start = time;
      if (time - start > nanoseconds) return i;
      if (time - start < kYielding) {
        sched_yield();
      } else {
        const timespec pause{0, kSleep};
        nanosleep(&pause, nullptr);
      }
    }
  }
  return -1;
}
