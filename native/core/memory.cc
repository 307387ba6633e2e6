#include "core/memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"

#ifdef __linux__
#include <sys/mman.h>

#include <fstream>
#endif

namespace limbeck {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t size_bytes, size_t multiple) { return (size_bytes + multiple - 1) / multiple * multiple; }

#ifdef __linux__
/// The number in a one-number file, or `missing` when there is none ("max", no such file).
size_t read_number(const char* path, size_t missing) {
  std::ifstream file(path);
  unsigned long long value = 0;
  return file >> value ? static_cast<size_t>(value) : missing;
}
#endif

}  // namespace

void* allocate_aligned(size_t size_bytes) {
#ifdef __linux__
  if (size_bytes >= 2 * kHugePage) {
    size_bytes = round_up(size_bytes, kHugePage);
    void* data = std::aligned_alloc(kHugePage, size_bytes);
    // A wish: where the system refuses it, the memory is the same with small pages.
    if (data != nullptr) madvise(data, size_bytes, MADV_HUGEPAGE);
    return data;
  }
#endif
  return std::aligned_alloc(kAlignment, round_up(size_bytes, kAlignment));
}

size_t available_memory_bytes() {
#ifdef __linux__
  size_t available = SIZE_MAX;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  while (meminfo >> key) {
    unsigned long long kibibytes = 0;
    if (key == "MemAvailable:" && meminfo >> kibibytes) {
      available = static_cast<size_t>(kibibytes) * 1024;
      break;
    }
    meminfo.ignore(256, '\n');
  }
  const size_t limit = read_number("/sys/fs/cgroup/memory.max", SIZE_MAX);
  if (limit != SIZE_MAX) {
    const size_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    const size_t left = limit > used ? limit - used : 0;
    if (left < available) available = left;
  }
  return available;
#else
  return std::numeric_limits<size_t>::max();
#endif
}

void AlignedFloatsDeleter::operator()(float* data) const { std::free(data); }

AlignedFloats allocate_floats(int64_t count) {
  const size_t size_bytes = round_up((static_cast<size_t>(count) + 1) * sizeof(float), kAlignment);
  const size_t available = available_memory_bytes();
  if (size_bytes > available) {
    throw Error("ERR_OUT_OF_MEMORY", "This needs " + std::to_string(size_bytes) + " bytes of memory and " +
                                         std::to_string(available) + " are available. Use a smaller model.");
  }
  void* data = allocate_aligned(size_bytes);
  if (data == nullptr) {
    throw Error("ERR_OUT_OF_MEMORY", "Could not allocate " + std::to_string(size_bytes) + " bytes.");
  }
  std::memset(data, 0, size_bytes);
  return AlignedFloats(static_cast<float*>(data));
}

}  // namespace limbeck
