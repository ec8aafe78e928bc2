// What a call found, counted, one line each.
#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <string>

#include "runtime.h"

namespace cuda_host {
namespace {

constexpr size_t kMaxFindings = 32;  // a broken kernel can fail in thousands of ways

std::map<std::string, uint64_t> findings;

}  // namespace

void report(const char* kind, const std::string& message) {
  const std::string line = std::string(kind) + "\t" + message;
  if (findings.size() < kMaxFindings || findings.count(line)) ++findings[line];
}

std::string to_text(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

// An offset in the library, of the instruction that called: the counter is already behind it.
std::string code_address(const void* program_counter) {
  Dl_info info{};
  if (!dladdr(program_counter, &info)) return "?";
  char text[32];
  std::snprintf(text, sizeof text, "+0x%zx",
                static_cast<size_t>(static_cast<const char*>(program_counter) -
                                    static_cast<const char*>(info.dli_fbase)) -
                    1);
  return text;
}

const char* report_text() {
  static std::string text;
  text.clear();
  for (const auto& [line, count] : findings) text += std::to_string(count) + "\t" + line + "\n";
  return text.c_str();
}

void forget_report() { findings.clear(); }

}  // namespace cuda_host
