#include "core/arena.h"

#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

#include "core/error.h"

#ifndef __linux__
#include <limits>
#endif

namespace limbeck {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;
// Below this a look at the system's memory costs more than it could save.
constexpr size_t kCheckedBytes = size_t{64} << 20;

size_t round_up(size_t size_bytes) { return (size_bytes + kAlignment - 1) / kAlignment * kAlignment; }

void* allocate_block(size_t size_bytes) {
  if (size_bytes >= kCheckedBytes) {
    const size_t available = available_memory_bytes();
    if (size_bytes > available) {
      throw Error("ERR_OUT_OF_MEMORY", "This step needs " + std::to_string(size_bytes) + " bytes and " +
                                           std::to_string(available) +
                                           " are available. Use smaller batches or a smaller model.");
    }
  }
  void* data = std::aligned_alloc(kAlignment, size_bytes);
  if (data == nullptr) {
    throw Error("ERR_OUT_OF_MEMORY",
                "The system refused " + std::to_string(size_bytes) + " bytes. Use smaller batches or a smaller model.");
  }
  return data;
}

#ifdef __linux__
/// The number in a one-number file, or `missing` when there is none ("max", no such file).
size_t read_number(const char* path, size_t missing) {
  std::ifstream file(path);
  unsigned long long value = 0;
  return file >> value ? static_cast<size_t>(value) : missing;
}
#endif

}  // namespace

Arena::~Arena() {
  for (const Block& block : blocks_) std::free(block.data);
}

void* Arena::allocate_items(int64_t count, size_t item_bytes) {
  if (count < 0 || static_cast<size_t>(count) > SIZE_MAX / 2 / item_bytes) {
    throw Error("ERR_OUT_OF_MEMORY", "A size overflows: the model or the batch is larger than any memory.");
  }
  const size_t size_bytes = round_up(count == 0 ? 1 : static_cast<size_t>(count) * item_bytes);
  while (current_ < blocks_.size() && used_ + size_bytes > blocks_[current_].size_bytes) {
    ++current_;
    used_ = 0;
  }
  if (current_ == blocks_.size()) {
    size_t block_bytes = kSmallestBlock;
    while (block_bytes < size_bytes) block_bytes *= 2;
    // The last doubling may be what does not fit.
    if (block_bytes >= kCheckedBytes) block_bytes = size_bytes;
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back({allocate_block(block_bytes), block_bytes});
    used_ = 0;
  }
  void* result = static_cast<char*>(blocks_[current_].data) + used_;
  used_ += size_bytes;
  return result;
}

void Arena::reset() {
  if (blocks_.size() > 1) reserve(capacity_bytes());
  current_ = 0;
  used_ = 0;
}

void Arena::reserve(size_t size_bytes) {
  size_bytes = round_up(size_bytes);
  if (blocks_.size() == 1 && blocks_[0].size_bytes >= size_bytes) return;
  // The old blocks go first: both at once may not fit.
  for (const Block& block : blocks_) std::free(block.data);
  blocks_.clear();
  current_ = used_ = 0;
  if (size_bytes == 0) return;
  blocks_.reserve(1);
  blocks_.push_back({allocate_block(size_bytes), size_bytes});
}

size_t Arena::capacity_bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size_bytes;
  return total;
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

}  // namespace limbeck
