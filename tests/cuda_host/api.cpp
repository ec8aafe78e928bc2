// The boundaries of the runtime: what Python calls, and what code compiled with -fsanitize=thread
// calls. libtsan itself is not linked: these hooks are all of it. The runtime is compiled without.
#include "runtime.h"

using cuda_host::Access;

#define CUDA_HOST_API extern "C" __attribute__((visibility("default")))

CUDA_HOST_API void cuda_host_begin(uint32_t seed, uint32_t preempt, int check,
                                   uint64_t max_shared) {
  cuda_host::options = {seed, preempt, check != 0, max_shared};
  cuda_host::forget_attributes();
  cuda_host::forget_buffers();
  cuda_host::forget_report();
}

CUDA_HOST_API void cuda_host_add_buffer(const char* name, void* start, size_t bytes, size_t granule,
                                        int writable, int initialised) {
  cuda_host::add_buffer(name, start, bytes, granule, writable != 0, initialised != 0);
}

// What the compiler knows of a kernel: bytes of all its __shared__ variables.
CUDA_HOST_API void cuda_host_set_static_shared(const void* kernel, size_t bytes) {
  cuda_host::set_static_shared(kernel, bytes);
}

// For libraries that are no longer used. Every guarded stack takes two entries of the kernel's
// table of mappings, which holds only enough for some thirty libraries.
CUDA_HOST_API void cuda_host_release() { cuda_host::release_stacks(); }

CUDA_HOST_API const char* cuda_host_report() { return cuda_host::report_text(); }
CUDA_HOST_API uint64_t cuda_host_switches() { return cuda_host::switches(); }
CUDA_HOST_API uint64_t cuda_host_accesses() { return cuda_host::accesses(); }
CUDA_HOST_API void cuda_host_last_launch(unsigned sizes[6]) { cuda_host::last_launch(sizes); }

// Calls to these are in the kernel's code: where they return to is where the access is.
#define CUDA_HOST_HOOK(name, bytes, kind)                                         \
  extern "C" void __tsan_##name(void* address) {                                  \
    cuda_host::access(address, bytes, Access::kind, __builtin_return_address(0)); \
  }
#define CUDA_HOST_HOOKS(bytes)                        \
  CUDA_HOST_HOOK(read##bytes, bytes, kRead)           \
  CUDA_HOST_HOOK(write##bytes, bytes, kWrite)         \
  CUDA_HOST_HOOK(unaligned_read##bytes, bytes, kRead) \
  CUDA_HOST_HOOK(unaligned_write##bytes, bytes, kWrite)
CUDA_HOST_HOOKS(1)
CUDA_HOST_HOOKS(2)
CUDA_HOST_HOOKS(4)
CUDA_HOST_HOOKS(8)
CUDA_HOST_HOOKS(16)

// Accesses of any other size are copies of structures, which have no alignment of their own.
namespace {
void access_bytes(void* start, size_t bytes, Access kind, const void* program_counter) {
  for (size_t byte = 0; byte < bytes; ++byte) {
    cuda_host::access(static_cast<char*>(start) + byte, 1, kind, program_counter);
  }
}
}  // namespace
extern "C" void __tsan_read_range(void* start, size_t bytes) {
  access_bytes(start, bytes, Access::kRead, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* start, size_t bytes) {
  access_bytes(start, bytes, Access::kWrite, __builtin_return_address(0));
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
