// Shadow memory: for every element of every buffer and every byte of shared memory, who read and
// wrote it last, so that an access can be checked when it happens.
//
// Two accesses to the same place by different threads, one of them a write and not both atomic, are
// a race unless something orders them: a barrier of the block between them (their epochs differ),
// or for threads of one warp a __syncwarp (vector clocks). Blocks of one launch are never ordered.
// Because the rule speaks of order and not of what happened first, one schedule finds races of
// others.
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime.h"

namespace cuda_host {
namespace {

// One access. All zero: never.
struct Stamp {
  const void* program_counter;
  uint32_t block;  // counts blocks of all launches, from 1
  uint32_t epoch;  // barriers of the block before it
  uint32_t clock;  // __syncwarps of the thread before it
  uint16_t thread;
  bool atomic;
};

// The latest accesses of one kind: the last, the last of another thread of its block, and the last
// of another block. Of accesses that race with one to come, at least one is mostly among them.
struct History {
  Stamp last, of_other_thread, of_other_block;

  void add(const Stamp& stamp) {
    if (last.block != stamp.block) {
      of_other_block = last;
      of_other_thread = Stamp{};
    } else if (last.thread != stamp.thread) {
      of_other_thread = last;
    }
    last = stamp;
  }
};

struct Cell {
  History reads, writes;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// A stretch of memory that kernels may touch, one cell per `granule` bytes.
struct Range {
  std::string name;
  char* start = nullptr;
  size_t bytes = 0;
  size_t granule = 1;
  bool shared = false, writable = true, initialised = true;
  std::unique_ptr<Cell[], Free> cells = nullptr;  // zero pages until touched

  bool contains(const char* address) const { return static_cast<size_t>(address - start) < bytes; }
};

std::vector<Range> buffers;
Range static_shared{"shared memory", nullptr, 0, 1, true};
Range dynamic_shared_range{"dynamic shared memory", nullptr, 0, 1, true};
std::unique_ptr<char[], Free> dynamic_memory;
std::vector<std::pair<char*, char*>> image;  // code, constants and variables of this library
thread_local volatile char tls_anchor;  // touched, so that this host thread has the TLS segment

uint32_t block_serial = 0;
uint32_t first_of_launch = 1;
uint32_t epoch = 0;
uint64_t access_count = 0;

struct ThreadClock {
  uint32_t own = 0;
  uint32_t seen[kLanes] = {};  // accesses of that lane with a smaller clock came before
};
std::vector<ThreadClock> clocks;

void allocate_cells(Range& range) {
  const size_t cells = (range.bytes + range.granule - 1) / range.granule;
  range.cells.reset(static_cast<Cell*>(std::calloc(cells + 1, sizeof(Cell))));
  if (!range.cells) std::abort();
}

// Finds the segments of the library that this function is in.
int find_image(dl_phdr_info* info, size_t, void*) {
  const auto start_of = [&](const ElfW(Phdr) & header) {
    return reinterpret_cast<char*>(info->dlpi_addr + header.p_vaddr);
  };
  const char* here = reinterpret_cast<const char*>(&find_image);
  bool mine = false;
  for (int index = 0; index < info->dlpi_phnum; ++index) {
    const auto& header = info->dlpi_phdr[index];
    mine = mine || (header.p_type == PT_LOAD &&
                    static_cast<size_t>(here - start_of(header)) < header.p_memsz);
  }
  if (!mine) return 0;
  image.clear();
  for (int index = 0; index < info->dlpi_phnum; ++index) {
    const auto& header = info->dlpi_phdr[index];
    if (header.p_type == PT_LOAD) {
      image.emplace_back(start_of(header), start_of(header) + header.p_memsz);
    } else if (header.p_type == PT_TLS) {
      static_shared.start = static_cast<char*>(info->dlpi_tls_data);
      static_shared.bytes = header.p_memsz;
    }
  }
  return 1;
}

bool in_image(const char* address) {
  for (const auto& [start, end] : image) {
    if (address >= start && address < end) return true;
  }
  return false;
}

Range* find_range(const char* address) {
  if (static_shared.contains(address)) return &static_shared;
  if (dynamic_shared_range.contains(address)) return &dynamic_shared_range;
  for (Range& range : buffers) {
    if (range.contains(address)) return &range;
  }
  return nullptr;
}

std::string describe(Access kind, size_t bytes, const void* program_counter) {
  const char* verb = kind == Access::kRead    ? "read"
                     : kind == Access::kWrite ? "write"
                                              : "atomic operation";
  return std::string(verb) + " of " + std::to_string(bytes) + " bytes at " +
         code_address(program_counter);
}

// "4 bytes past the end of 'rewards'": the nearest buffer, since there it went astray.
std::string describe_place(const char* address) {
  size_t nearest = ~size_t{0};
  std::string text = "no buffer near";
  const auto consider = [&](const Range& range) {
    if (range.bytes == 0) return;
    const bool before = address < range.start;
    const size_t distance =
        static_cast<size_t>(before ? range.start - address : address - (range.start + range.bytes));
    if (distance >= nearest) return;
    nearest = distance;
    text = std::to_string(distance) + " bytes " + (before ? "before '" : "past the end of '") +
           range.name + "'";
  };
  consider(static_shared);
  consider(dynamic_shared_range);
  for (const Range& range : buffers) consider(range);
  return text;
}

bool are_ordered(const Stamp& before, const Stamp& now, bool shared) {
  if (before.block < first_of_launch) return true;  // never, or by an earlier launch
  if (before.atomic && now.atomic) return true;
  if (before.block != now.block) return shared;  // another block has shared memory of its own
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return before.thread / kLanes == now.thread / kLanes &&
         before.clock < clocks[now.thread].seen[before.thread % kLanes];
}

void check_order(const Range& range, const History& history, const char* what, const Stamp& now,
                 Access kind, size_t bytes) {
  for (const Stamp* before : {&history.last, &history.of_other_thread, &history.of_other_block}) {
    if (are_ordered(*before, now, range.shared)) continue;
    report("race", describe(kind, bytes, now.program_counter) + " of '" + range.name +
                       "' is not ordered with the " + (before->atomic ? "atomic operation" : what) +
                       " at " + code_address(before->program_counter) +
                       (before->block == now.block ? "" : " by another block"));
    return;
  }
}

void check_cell(const Range& range, Cell& cell, const Stamp& now, Access kind, size_t bytes) {
  const bool reads = kind != Access::kWrite, writes = kind != Access::kRead;
  const bool written = range.shared ? cell.writes.last.block == now.block
                                    : range.initialised || cell.writes.last.block != 0;
  if (reads && !written) {
    report("uninitialised", describe(kind, bytes, now.program_counter) + " of '" + range.name +
                                "', which nothing has written");
  }
  check_order(range, cell.writes, "write", now, kind, bytes);
  if (writes) {
    check_order(range, cell.reads, "read", now, kind, bytes);
    cell.writes.add(now);
  } else {
    cell.reads.add(now);
  }
}

}  // namespace

void* dynamic_shared() { return dynamic_shared_range.start; }
uint64_t accesses() { return access_count; }

void add_buffer(const char* name, void* start, size_t bytes, size_t granule, bool writable,
                bool initialised) {
  buffers.push_back(
      {name, static_cast<char*>(start), bytes, granule, false, writable, initialised, nullptr});
  if (options.check) allocate_cells(buffers.back());
}

void forget_buffers() { buffers.clear(); }

void begin_launch(size_t dynamic_shared_bytes) {
  tls_anchor = 1;
  dl_iterate_phdr(find_image, nullptr);
  if (!static_shared.cells) allocate_cells(static_shared);
  dynamic_memory.reset(static_cast<char*>(std::malloc(dynamic_shared_bytes + 1)));
  dynamic_shared_range.start = dynamic_memory.get();
  dynamic_shared_range.bytes = dynamic_shared_bytes;
  allocate_cells(dynamic_shared_range);
  first_of_launch = block_serial + 1;
}

void begin_block(int threads) {
  ++block_serial;
  epoch = 0;
  clocks.assign(threads, ThreadClock{});
  // Shared memory starts undefined. All ones is NaN, so that arithmetic shows it too.
  std::memset(static_shared.start, 0xff, static_shared.bytes);
  std::memset(dynamic_shared_range.start, 0xff, dynamic_shared_range.bytes);
}

void passed_block_barrier() { ++epoch; }

void passed_warp_barrier(int warp, uint32_t lanes) {
  ThreadClock* first = &clocks[static_cast<size_t>(warp) * kLanes];
  ThreadClock joined;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (int other = 0; other < kLanes; ++other) {
      joined.seen[other] = std::max(joined.seen[other], first[lane].seen[other]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes >> lane & 1) joined.seen[lane] = std::max(joined.seen[lane], ++first[lane].own);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes >> lane & 1) std::copy_n(joined.seen, kLanes, first[lane].seen);
  }
}

void access(void* pointer, size_t bytes, Access kind, const void* program_counter) {
  char* address = static_cast<char*>(pointer);
  // Local variables and the runtime's own are not checked.
  if (current_fiber() == host_fiber() || is_on_fiber_stack(address) || in_image(address)) return;
  ++access_count;
  if (options.preempt != 0 && random_number() % options.preempt == 0) preempt();
  if (!options.check) return;

  Range* range = find_range(address);
  if (!range || address + bytes > range->start + range->bytes) {
    report("out of bounds", describe(kind, bytes, program_counter) + ", " +
                                describe_place(address + (range ? bytes : 0)));
    fail_launch();  // what follows could touch anything
  }
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    report("misaligned", describe(kind, bytes, program_counter) + " of '" + range->name + "'");
    fail_launch();  // a vector instruction would kill the process
  }
  if (kind != Access::kRead && !range->writable) {
    report("read-only",
           describe(kind, bytes, program_counter) + " of '" + range->name + "', which is an input");
    fail_launch();
  }
  const int thread = thread_of(current_fiber());
  const Stamp now{program_counter,
                  block_serial,
                  epoch,
                  clocks[thread].own,
                  static_cast<uint16_t>(thread),
                  kind == Access::kAtomic};
  const size_t first = static_cast<size_t>(address - range->start) / range->granule;
  const size_t last = static_cast<size_t>(address + bytes - 1 - range->start) / range->granule;
  for (size_t index = first; index <= last; ++index) {
    check_cell(*range, range->cells[index], now, kind, bytes);
  }
}

void before_atomic(void* address, size_t bytes, const void* program_counter) {
  access(address, bytes, Access::kAtomic, program_counter);
}

}  // namespace cuda_host
