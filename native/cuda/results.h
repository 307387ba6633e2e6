#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/context.h"

namespace limbeck::cuda {

struct Engine;

/// Results on their way to the host. Two slots take turns: while one is computed, the other crosses the bus into pinned
/// memory on a stream of its own, and from there into the caller's arrays, which need not be pinned.
class Results {
 public:
  explicit Results(Engine& engine);
  ~Results();
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;

  /// Room for `slot_bytes` a slot, in the arena of the context and on the host.
  void plan(Context& context, size_t slot_bytes);
  /// Starts on the other slot, once what was in it has reached the host.
  void begin();
  /// Device memory for `count` values that end() sends to `host`.
  template <typename T>
  T* add(T* host, int64_t count) {
    return static_cast<T*>(add_bytes(host, static_cast<size_t>(count) * sizeof(T)));
  }
  /// Sends what was added, after the work that the context's stream has so far.
  void end(Context& context);
  /// Waits until everything has arrived.
  void finish();

  static size_t padded_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  struct Entry {
    void* host;
    size_t offset, bytes;
  };
  struct Slot {
    char* device = nullptr;
    size_t used = 0;
    std::vector<Entry> entries;
    bool is_on_its_way = false;
    cudaEvent_t computed = nullptr, arrived = nullptr;
  };
  void* add_bytes(void* host, size_t bytes);
  void collect(int index);

  Engine& engine_;
  bool is_dry_ = false;
  size_t slot_bytes_ = 0;
  Slot slots_[2];
  int current_ = 0;
};

}  // namespace limbeck::cuda
