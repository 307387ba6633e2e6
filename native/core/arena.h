#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace limbeck {

/// 64-byte aligned bump allocator. It grows while the first step runs; reset() then joins its blocks into one, so that
/// later steps of the same size allocate nothing. Memory is uninitialised. Not thread-safe: allocate before a parallel
/// section, on the thread that owns the arena. Throws Error("ERR_OUT_OF_MEMORY") with the bytes needed and available.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <typename T>
  T* allocate(int64_t count) {
    return static_cast<T*>(allocate_items(count, sizeof(T)));
  }

  /// Frees everything handed out, keeps the memory.
  void reset();
  /// Makes one block of at least this size ready; checks it against the memory that the machine has available.
  void reserve(size_t size_bytes);
  size_t capacity_bytes() const;

  /// Gives back, at its end, what was allocated during its life.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.current_), used_(arena.used_) {}
    ~Scope() {
      arena_.current_ = block_;
      arena_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t block_, used_;
  };

 private:
  struct Block {
    void* data;
    size_t size_bytes;
  };
  void* allocate_items(int64_t count, size_t item_bytes);

  std::vector<Block> blocks_;
  size_t current_ = 0;  // index of the block in use
  size_t used_ = 0;     // bytes used of it
};

}  // namespace limbeck
