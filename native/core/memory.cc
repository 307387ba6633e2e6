#include "core/memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

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

size_t float_bytes(int64_t count) { return round_up((static_cast<size_t>(count) + 1) * sizeof(float), kAlignment); }

float* allocate_checked(size_t size_bytes) {
  const size_t available = size_bytes < kCheckedBytes ? SIZE_MAX : available_memory_bytes();
  if (size_bytes > available) {
    throw Error("ERR_OUT_OF_MEMORY", "This needs " + std::to_string(size_bytes) + " bytes of memory and " +
                                         std::to_string(available) + " are available. Use a smaller model.");
  }
  void* data = allocate_aligned(size_bytes);
  if (data == nullptr) {
    throw Error("ERR_OUT_OF_MEMORY", "Could not allocate " + std::to_string(size_bytes) + " bytes.");
  }
  return static_cast<float*>(data);
}

/// Large buffers for FloatBuffer that are not in use.
class SpareBuffers {
 public:
  float* take(size_t size_bytes) {
    if (size_bytes < kHugePage) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Spare& spare : spares_) {
      if (spare.size_bytes != size_bytes) continue;
      float* data = spare.data;
      spare = spares_.back();
      spares_.pop_back();
      kept_bytes_ -= size_bytes;
      return data;
    }
    return nullptr;
  }

  /// False when there are enough of them.
  bool keep(float* data, size_t size_bytes) {
    if (size_bytes < kHugePage) return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kept_bytes_ + size_bytes > kMaxKeptBytes) return false;
    spares_.push_back({data, size_bytes});
    kept_bytes_ += size_bytes;
    return true;
  }

 private:
  // The hidden states of a few batches.
  static constexpr size_t kMaxKeptBytes = size_t{128} << 20;
  struct Spare {
    float* data;
    size_t size_bytes;
  };
  std::mutex mutex_;
  std::vector<Spare> spares_;
  size_t kept_bytes_ = 0;
};

/// Never destroyed: buffers come back until the process ends.
SpareBuffers& spare_buffers() {
  static auto* buffers = new SpareBuffers;
  return *buffers;
}

}  // namespace

void* allocate_aligned(size_t size_bytes) {
#ifdef __linux__
  if (size_bytes >= kHugePage) {
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
  const size_t size_bytes = float_bytes(count);
  AlignedFloats data(allocate_checked(size_bytes));
  std::memset(data.get(), 0, size_bytes);
  return data;
}

FloatBuffer::FloatBuffer(int64_t count) : count_(count) {
  float* data = spare_buffers().take(float_bytes(count));
  if (data == nullptr) data = allocate_checked(float_bytes(count));
  data_ = {data, Deleter{count}};
}

void FloatBuffer::give_back(float* data, int64_t count) {
  if (data != nullptr && !spare_buffers().keep(data, float_bytes(count))) std::free(data);
}

}  // namespace limbeck
