// Fibers: a stack each, and a switch between them that saves registers only.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <vector>

#include "runtime.h"

namespace cuda_host {

// ucontext enters a stack for the first time; after that _setjmp and _longjmp switch, because
// swapcontext asks the kernel for the signal mask every time.
struct Fiber {
  jmp_buf resume;
  ucontext_t first;
  bool started = false;
  int thread = kNoThread;
};

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 128 << 10;

char* stacks = nullptr;  // kMaxThreads of them; the lowest page of each is a guard
Fiber host;
Fiber* running = &host;
std::vector<Fiber> fibers;
std::vector<Fiber*> idle;
uint64_t switch_count = 0;

void make_fibers() {
  void* memory = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  stacks = static_cast<char*>(memory);
  fibers.resize(kMaxThreads);
  for (int index = 0; index < kMaxThreads; ++index) {
    mprotect(stacks + index * kStackBytes, kPage, PROT_NONE);
  }
  abandon_fibers();
}

void enter_first(Fiber* fiber, void (*entry)()) {
  char* stack = stacks + (fiber - fibers.data()) * kStackBytes;
  getcontext(&fiber->first);
  fiber->first.uc_stack.ss_sp = stack + kPage;
  fiber->first.uc_stack.ss_size = kStackBytes - kPage;
  fiber->first.uc_link = nullptr;
  makecontext(&fiber->first, entry, 0);
}

}  // namespace

Fiber* current_fiber() { return running; }
Fiber* host_fiber() { return &host; }
uint64_t switches() { return switch_count; }
int thread_of(const Fiber* fiber) { return fiber->thread; }
void set_thread(Fiber* fiber, int thread) { fiber->thread = thread; }

void abandon_fibers() {
  idle.clear();
  for (size_t index = fibers.size(); index-- > 0;) {
    fibers[index].started = false;
    fibers[index].thread = kNoThread;
    idle.push_back(&fibers[index]);
  }
}

Fiber* take_fiber(void (*entry)()) {
  if (fibers.empty()) make_fibers();
  Fiber* fiber = idle.back();  // a block has no more threads than there are fibers
  idle.pop_back();
  if (!fiber->started) enter_first(fiber, entry);
  return fiber;
}

void release_stacks() {
  if (stacks) munmap(stacks, kStackBytes * kMaxThreads);
  stacks = nullptr;
  fibers.clear();
  idle.clear();
}

void give_fiber_back(Fiber* fiber) { idle.push_back(fiber); }

void switch_to(Fiber* fiber) {
  Fiber* self = running;
  if (fiber == self) return;
  ++switch_count;
  running = fiber;
  if (_setjmp(self->resume) != 0) return;
  if (fiber->started || fiber == &host) _longjmp(fiber->resume, 1);
  fiber->started = true;
  setcontext(&fiber->first);
}

bool is_on_fiber_stack(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - stacks) <
         kStackBytes * kMaxThreads;
}

}  // namespace cuda_host
