#include "core/arena.h"

#include <cstdlib>
#include <new>
#include <string>

#include "core/error.h"
#include "core/memory.h"

namespace limbeck {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;

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
  void* data = allocate_aligned(size_bytes);
  if (data == nullptr) {
    throw Error("ERR_OUT_OF_MEMORY",
                "The system refused " + std::to_string(size_bytes) + " bytes. Use smaller batches or a smaller model.");
  }
  return data;
}

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

}  // namespace limbeck
