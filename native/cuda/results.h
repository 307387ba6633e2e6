#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/thread_pool.h"
#include "cuda/context.h"

namespace limbeck::cuda {

struct Engine;

/// Results of all passes of an engine on their way to the host. Slots take turns: while one is computed, those before
/// cross the bus into pinned memory on a stream of its own, and go from there into the callers' arrays, which need not
/// be pinned. They are not in the arena, so that the next pass may begin while they are under way.
class Results {
 public:
  explicit Results(Engine& engine) : engine_(engine) {}
  ~Results();
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;

  /// Room for the pieces of the pass that comes, each of at most size_bytes, before any of it is launched. Throws
  /// ERR_OUT_OF_MEMORY.
  void reserve(size_t num_pieces, size_t size_bytes);
  static constexpr size_t kMaxPieceBytes = size_t{64} << 20;  // what a pass should be cut into, where it can be
  /// The next slot, reserved before, once what was in it is with its owner. When dry, addresses that are none.
  ///   owner  for collect() and drop()
  void begin(Context& context, const void* owner);
  /// Device memory for `count` values that end() sends to `host`, where they are when collect() has returned.
  template <typename T>
  T* add(T* host, int64_t count) {
    return static_cast<T*>(add_bytes(host, static_cast<size_t>(count) * sizeof(T), false));
  }
  /// The same for values that are widened on the host.
  bf16* add_widened(float* host, int64_t count) {
    return static_cast<bf16*>(add_bytes(host, static_cast<size_t>(count) * sizeof(bf16), true));
  }
  /// Sends what was added, if only the news that it was computed, after the work that the context's stream has so far.
  void end(Context& context);
  /// Waits until all results of this owner are in its arrays.
  void collect(const void* owner);
  /// Those of them that have not arrived are forgotten.
  void drop(const void* owner);

  static size_t padded_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  // Pieces of two passes at work, two each; a pass of more waits for its first ones. Large pieces take fewer turns, for
  // the memory.
  static constexpr size_t kSlots = 4, kLargeSlots = 2;

  struct Entry {
    void* host;
    size_t offset, bytes;  // in the slot
    bool is_widened;       // from bf16 to float
  };
  struct Slot {
    DeviceArena memory;
    char *device = nullptr, *pinned = nullptr;  // [size_bytes]
    size_t size_bytes = 0, used = 0;
    const void* owner = nullptr;
    std::vector<Entry> entries;
    bool is_on_its_way = false;
    cudaEvent_t computed = nullptr, arrived = nullptr;
  };
  void* add_bytes(void* host, size_t bytes, bool is_widened);
  void deliver(Slot& slot);
  void grow(Slot& slot, size_t size_bytes);
  void copy_out(const Entry& entry, const char* pinned);

  Engine& engine_;
  bool is_dry_ = false;
  Slot slots_[kSlots];
  size_t turns_ = kSlots;             // slots that take turns, of the pass at hand
  size_t next_ = 0;                   // the next of them
  Slot* current_ = nullptr;           // of the last begin()
  std::unique_ptr<ThreadPool> pool_;  // made for the first large copy
};

}  // namespace limbeck::cuda
