// Runs a grid: blocks one after another, the threads of a block as fibers that change places at
// barriers, at warp operations and, when asked, at memory accesses.
#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {

Options options;

namespace {

struct Waiting {
  Site site{nullptr, 0};
  bool at_barrier = false;
  // The rest is of warp operations.
  WarpOp op = WarpOp::kSync;
  unsigned mask = 0;
  int source = 0;
  uint64_t value = 0, result = 0;
};

struct Thread {
  Fiber* fiber = nullptr;  // null before it starts and after it has exited
  Waiting waiting;
};

struct Warp {
  uint32_t alive = 0;    // lanes that have not exited
  uint32_t waiting = 0;  // lanes at a warp operation
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> order;  // in which threads start
  size_t started = 0;
  size_t exited = 0;
  std::deque<Fiber*> ready;  // may run; seeded schedules draw from it, others keep its order
  std::vector<Fiber*> at_barrier;
  int true_predicates = 0, barrier_result = 0;

  int size() const { return static_cast<int>(threads.size()); }
};

Block block;
Body body;
void* context;
uint64_t random_state;
bool failed = false;
cudaError_t last_error = cudaSuccess;
unsigned last_sizes[6];
std::map<const void*, size_t> static_shared;    // bytes by kernel
std::map<const void*, size_t> allowed_dynamic;  // by kernel that has asked for more

Thread& current_thread() { return block.threads[thread_of(current_fiber())]; }

// threadIdx belongs to the running thread.
void place_thread() {
  const unsigned thread = static_cast<unsigned>(thread_of(current_fiber()));
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
               thread / (blockDim.x * blockDim.y)};
}

bool coin() { return random_number() & 1; }

template <typename T>
void shuffle_order(std::vector<T>& items) {
  for (size_t left = items.size(); left > 1; --left) {
    std::swap(items[left - 1], items[random_number() % left]);
  }
}

void describe_deadlock() {
  std::set<std::string> places;
  for (const Thread& thread : block.threads) {
    if (!thread.fiber) continue;
    places.insert((thread.waiting.at_barrier ? "at the barrier at " : "at the warp operation at ") +
                  to_text(thread.waiting.site));
  }
  std::string message = "all threads that have not exited wait:";
  for (const std::string& place : places) message += " " + place + ",";
  message.pop_back();
  report("deadlock", message);
}

void work();

// Who runs next. To start another thread takes a fiber of its own only if the running one waits.
Fiber* choose() {
  if (failed) return host_fiber();
  const bool can_start = block.started < block.threads.size();
  if (can_start && (options.seed == 0 || block.ready.empty() || coin())) return take_fiber(work);
  if (!block.ready.empty()) {
    if (options.seed != 0) {
      std::swap(block.ready.front(), block.ready[random_number() % block.ready.size()]);
    }
    Fiber* fiber = block.ready.front();
    block.ready.pop_front();
    return fiber;
  }
  if (block.exited < block.threads.size()) {
    describe_deadlock();
    failed = true;
  }
  return host_fiber();
}

void wait_for_turn() {
  switch_to(choose());
  place_thread();
}

void release_barrier() {
  const Site first = block.threads[thread_of(block.at_barrier[0])].waiting.site;
  for (Fiber* fiber : block.at_barrier) {
    const Site site = block.threads[thread_of(fiber)].waiting.site;
    if (site.line == first.line) continue;
    const bool before = site.line < first.line;
    report("divergent barrier", "threads of one block wait at " + to_text(before ? site : first) +
                                    " and at " + to_text(before ? first : site));
  }
  if (block.exited > 0) {
    report("barrier not reached",
           std::to_string(block.exited) + " of " + std::to_string(block.size()) +
               " threads had exited before the barrier at " + to_text(first));
  }
  passed_block_barrier();
  block.barrier_result = block.true_predicates;
  block.true_predicates = 0;
  block.ready.insert(block.ready.end(), block.at_barrier.begin(), block.at_barrier.end());
  block.at_barrier.clear();
}

void release_barrier_if_complete() {
  if (!block.at_barrier.empty() && block.at_barrier.size() + block.exited == block.threads.size()) {
    release_barrier();
  }
}

// What a lane gets from a warp operation that `lanes` take part in.
uint64_t warp_result(int first_thread, uint32_t lanes, const Waiting& lane) {
  const auto value = [&](int other) { return block.threads[first_thread + other].waiting.value; };
  if (lane.op == WarpOp::kShuffle) {
    if (lanes >> lane.source & 1) return value(lane.source);
    report("shuffle", "the shuffle at " + to_text(lane.site) +
                          " reads a lane that has exited or is not in its mask");
    return ~uint64_t{0};
  }
  uint64_t result = 0;
  for (int other = 0; other < kLanes; ++other) {
    if (!(lanes >> other & 1)) continue;
    const bool set = lane.op == WarpOp::kBallot ? value(other) != 0 : value(other) == lane.value;
    result |= uint64_t{set} << other;
  }
  return result;
}

// Completes the operation that names `mask` if all lanes of it that have not exited wait in it.
void release_warp_if_complete(int warp_index, unsigned mask) {
  Warp& warp = block.warps[warp_index];
  const uint32_t lanes = mask & warp.alive;
  if (lanes == 0 || (warp.waiting & lanes) != lanes) return;
  const int first_thread = warp_index * kLanes;
  const auto waiting = [&](int lane) -> Waiting& {
    return block.threads[first_thread + lane].waiting;
  };
  const Waiting& first = waiting(__builtin_ctz(lanes));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    // Lanes that wait for something else may still come here; if not, it is a deadlock.
    if (waiting(lane).mask != mask || waiting(lane).op != first.op) return;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    if (waiting(lane).site.line != first.site.line) {
      report("divergent warp operation", "lanes of one warp meet at " + to_text(first.site) +
                                             " and at " + to_text(waiting(lane).site));
    }
    waiting(lane).result = warp_result(first_thread, lanes, waiting(lane));
    block.ready.push_back(block.threads[first_thread + lane].fiber);
  }
  warp.waiting &= ~lanes;
  // Shuffles and votes exchange registers; CUDA promises no order of memory for them.
  if (first.op == WarpOp::kSync) passed_warp_barrier(warp_index, lanes);
}

void leave(int thread) {
  block.threads[thread].fiber = nullptr;
  ++block.exited;
  Warp& warp = block.warps[thread / kLanes];
  warp.alive &= ~(1u << thread % kLanes);
  for (uint32_t left = warp.waiting; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (!(warp.waiting >> lane & 1)) continue;  // released with an earlier lane
    const int waiting_thread = thread / kLanes * kLanes + lane;
    release_warp_if_complete(thread / kLanes, block.threads[waiting_thread].waiting.mask);
  }
  release_barrier_if_complete();
}

// What every fiber does: run threads of the block to their end, one after another, until there are
// none to start. A thread that waits keeps its fiber, and the next one starts on another.
void work() {
  for (;;) {
    Fiber* self = current_fiber();
    while (block.started < block.threads.size()) {
      const int thread = block.order[block.started++];
      set_thread(self, thread);
      block.threads[thread].fiber = self;
      place_thread();
      body(context);
      set_thread(self, kNoThread);
      leave(thread);
      if (options.seed != 0 && !block.ready.empty() && coin()) break;
    }
    give_fiber_back(self);
    switch_to(choose());
  }
}

void run_block(int threads) {
  block.threads.assign(threads, Thread{});
  block.warps.assign((threads + kLanes - 1) / kLanes, Warp{~0u, 0});
  if (threads % kLanes) block.warps.back().alive = (1u << threads % kLanes) - 1;
  block.order.resize(threads);
  std::iota(block.order.begin(), block.order.end(), 0);
  if (options.seed != 0) shuffle_order(block.order);
  block.started = block.exited = 0;
  block.true_predicates = 0;
  begin_block(threads);
  switch_to(choose());
  if (failed) {
    block.ready.clear();
    block.at_barrier.clear();
    abandon_fibers();
  }
}

bool is_valid(const dim3& grid, const dim3& size) {
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  return threads >= 1 && threads <= kMaxThreads && size.z <= 64 && grid.x >= 1 &&
         grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
}

size_t static_shared_of(const void* kernel) {
  const auto found = static_shared.find(kernel);
  return found == static_shared.end() ? 0 : found->second;
}

// Why no GPU of the chosen kind runs a kernel with so much shared memory; empty if it does.
std::string shared_memory_fault(const void* kernel, size_t dynamic) {
  const size_t fixed = static_shared_of(kernel);
  if (fixed > kDefaultShared) {
    return std::to_string(fixed) + " bytes of static shared memory, a kernel can have " +
           std::to_string(kDefaultShared);
  }
  const auto asked = allowed_dynamic.find(kernel);
  const size_t limit = asked == allowed_dynamic.end() ? kDefaultShared - fixed : asked->second;
  if (dynamic <= limit) return "";
  return std::to_string(dynamic) + " bytes of dynamic shared memory beside " +
         std::to_string(fixed) + " of static, " + std::to_string(limit) + " are allowed" +
         (asked == allowed_dynamic.end() ? " without cudaFuncSetAttribute" : "");
}

}  // namespace

void set_static_shared(const void* kernel, size_t bytes) { static_shared[kernel] = bytes; }

void forget_attributes() { allowed_dynamic.clear(); }

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  const size_t wanted = static_cast<size_t>(bytes), fixed = static_shared_of(kernel);
  if (bytes < 0 || wanted + fixed > options.max_shared) {
    report("launch", "cudaFuncSetAttribute: " + std::to_string(bytes) +
                         " bytes of dynamic shared memory beside " + std::to_string(fixed) +
                         " of static, a block has " + std::to_string(options.max_shared));
    return last_error = cudaErrorInvalidValue;
  }
  allowed_dynamic[kernel] = wanted;
  return cudaSuccess;
}

uint32_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 16);
}

void preempt() {
  block.ready.push_back(current_fiber());
  wait_for_turn();
}

void fail_launch() {
  failed = true;
  switch_to(host_fiber());
  __builtin_unreachable();  // the fiber is abandoned
}

cudaError_t take_last_error() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

void last_launch(unsigned sizes[6]) { std::copy_n(last_sizes, 6, sizes); }

int lane() { return thread_of(current_fiber()) % kLanes; }

int barrier(bool predicate, Site site) {
  current_thread().waiting.site = site;
  current_thread().waiting.at_barrier = true;
  block.true_predicates += predicate;
  block.at_barrier.push_back(current_fiber());
  release_barrier_if_complete();
  wait_for_turn();
  return block.barrier_result;
}

uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int source, Site site) {
  const int thread = thread_of(current_fiber());
  Waiting& waiting = current_thread().waiting;
  waiting = {site, false, op, mask, source, value, 0};
  if (!(mask >> lane() & 1)) {
    report("warp mask", "a lane calls the warp operation at " + to_text(site) +
                            " with a mask that does not name it");
  }
  block.warps[thread / kLanes].waiting |= 1u << lane();
  release_warp_if_complete(thread / kLanes, mask);
  wait_for_turn();
  return waiting.result;
}

void run(const void* kernel, dim3 grid, dim3 size, size_t dynamic_shared_bytes, Body kernel_body,
         void* kernel_context) {
  const unsigned sizes[6] = {grid.x, grid.y, grid.z, size.x, size.y, size.z};
  std::copy_n(sizes, 6, last_sizes);
  if (!is_valid(grid, size)) {
    report("launch", "no GPU takes this grid or block");
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (const std::string fault = shared_memory_fault(kernel, dynamic_shared_bytes); !fault.empty()) {
    report("launch", fault);
    last_error = cudaErrorInvalidValue;
    return;
  }
  gridDim = grid;
  blockDim = size;
  body = kernel_body;
  context = kernel_context;
  failed = false;
  random_state = 0x9E3779B97F4A7C15ull * (uint64_t{options.seed} + 1);
  begin_launch(dynamic_shared_bytes);
  // CUDA promises nothing about the order of blocks.
  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (options.seed != 0) shuffle_order(order);
  for (size_t index = 0; index < order.size() && !failed; ++index) {
    const uint64_t at = order[index];
    blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                static_cast<unsigned>(at / (uint64_t{grid.x} * grid.y))};
    run_block(static_cast<int>(size.x * size.y * size.z));
  }
  if (failed) last_error = cudaErrorLaunchFailure;
}

}  // namespace cuda_host

cudaError_t cudaGetLastError() { return cuda_host::take_last_error(); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    default:
      return "unspecified launch failure";
  }
}
