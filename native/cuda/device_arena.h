#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// Bump allocator of device memory, 256-byte aligned and uninitialised. In one of three states:
///   measuring  is_dry of the constructor: hands out addresses that are none, and remembers the peak
///   planned    after reserve(): one block; asking for more than the plan throws ERR_OUT_OF_MEMORY
///   growing    before: adds blocks as they are needed; reset() joins them into one
/// A training step is measured first, so that what does not fit fails before anything is allocated. Not thread-safe.
class DeviceArena {
 public:
  explicit DeviceArena(bool is_dry = false) : is_dry_(is_dry) {}
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  template <typename T>
  T* allocate(int64_t count) {
    return static_cast<T*>(allocate_items(count, sizeof(T)));
  }

  /// One block of this size instead of those before; nothing may be in use. Throws ERR_OUT_OF_MEMORY with the bytes
  /// that are needed and free, before it allocates.
  void reserve(size_t size_bytes);
  /// Frees everything handed out, keeps the memory.
  void reset();
  bool is_dry() const { return is_dry_; }
  /// All work on this memory will be on this stream; the emulator finds what is not.
  void use_on(cudaStream_t stream) { stream_ = stream; }
  /// The most that was in use at once since the arena was made.
  size_t peak_bytes() const { return peak_bytes_; }
  size_t used_bytes() const;
  size_t capacity_bytes() const;

  /// Gives back, at its end, what was allocated during its life. The memory may be handed out again at once: work on
  /// one stream comes in order.
  class Scope {
   public:
    explicit Scope(DeviceArena& arena) : arena_(arena), block_(arena.current_), used_(arena.used_) {}
    ~Scope() { arena_.give_back(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    DeviceArena& arena_;
    size_t block_, used_;
  };

 private:
  struct Block {
    char* data;
    size_t size_bytes;
    size_t before_bytes;  // in use in the blocks before while this one is the current
  };
  void* allocate_items(int64_t count, size_t item_bytes);
  void give_back(size_t block, size_t used);
  void add_block(size_t size_bytes);
  void free_blocks();

  bool is_dry_, is_planned_ = false;
  cudaStream_t stream_ = nullptr;
  std::vector<Block> blocks_;
  size_t current_ = 0;  // index of the block in use
  size_t used_ = 0;     // bytes used of it
  size_t peak_bytes_ = 0;
};

}  // namespace limbeck::cuda
