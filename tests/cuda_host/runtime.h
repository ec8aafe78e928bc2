// The parts of the runtime and what they exchange. Everything is global state of one
// library, used by one host thread at a time.
#pragma once

#include <string>

#include "cuda_host.h"

namespace cuda_host {

constexpr int kMaxThreads = 1024;  // of a block, as on every GPU
constexpr size_t kDefaultShared =
    48 * 1024;  // bytes of shared memory; static memory never has more
constexpr int kLanes = 32;
constexpr int kNoThread = -1;

struct Options {
  uint32_t seed = 0;     // 0: threads run in the order of their index; else every choice is drawn
  uint32_t preempt = 0;  // switch threads at about one in so many memory accesses; 0: never
  bool check = true;
  uint64_t max_shared = 0;  // bytes of a block's shared memory, static and dynamic, on this GPU
};
extern Options options;

// --- fibers.cpp: stacks that CUDA threads run on ---

struct Fiber;
Fiber* current_fiber();
Fiber* host_fiber();                 // the stack that called the launcher
Fiber* take_fiber(void (*entry)());  // an idle one; a fresh one starts in `entry`
void give_fiber_back(Fiber* fiber);
void abandon_fibers();  // forgets what every fiber was doing
void switch_to(Fiber* fiber);
void release_stacks();
uint64_t switches();
bool is_on_fiber_stack(const void* address);
int thread_of(const Fiber* fiber);
void set_thread(Fiber* fiber, int thread);

// --- schedule.cpp: which thread runs next, barriers and warp operations ---

void preempt();                   // lets other threads run now
[[noreturn]] void fail_launch();  // ends the launch; for faults after which it cannot continue
uint32_t random_number();
cudaError_t take_last_error();
void last_launch(unsigned sizes[6]);  // grid x, y, z and block x, y, z
void set_static_shared(const void* kernel, size_t bytes);
void forget_attributes();  // of kernels

// --- checker.cpp: what every access to memory means ---

enum class Access { kRead, kWrite, kAtomic };

void add_buffer(const char* name, void* start, size_t bytes, size_t granule, bool writable,
                bool initialised);
void forget_buffers();
void begin_launch(size_t dynamic_shared_bytes);
void begin_block(int threads);
void passed_block_barrier();
// All lanes of `lanes` of the warp see what each of them did before.
void passed_warp_barrier(int warp, uint32_t lanes);
void access(void* address, size_t bytes, Access kind, const void* program_counter);
uint64_t accesses();

// --- report.cpp: what was found ---

// Counts a finding. `kind` is one of the words in README.md.
void report(const char* kind, const std::string& message);
std::string to_text(const Site& site);
std::string code_address(const void* program_counter);  // for Python to turn into file:line
const char* report_text();
void forget_report();

}  // namespace cuda_host
