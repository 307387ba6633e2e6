#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace limbeck {

/// 64-byte aligned memory for std::free(), or null. What spans huge pages is aligned to them and asks for them: a table
/// of a hundred megabytes has more small pages than the processor remembers.
void* allocate_aligned(size_t size_bytes);

/// Puts the elements of a std::vector into such memory.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(size_t count) {
    void* data = count > SIZE_MAX / sizeof(T) ? nullptr : allocate_aligned(count * sizeof(T));
    if (data == nullptr) throw std::bad_alloc();
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t) { std::free(data); }
  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
  friend bool operator!=(const AlignedAllocator&, const AlignedAllocator&) { return false; }
};
template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

/// Below this a look at the system's memory costs more than it could save.
constexpr size_t kCheckedBytes = size_t{64} << 20;

/// Bytes that this process may still take: MemAvailable and the cgroup limit, whichever is less.
size_t available_memory_bytes();

struct AlignedFloatsDeleter {
  void operator()(float* data) const;
};
using AlignedFloats = std::unique_ptr<float[], AlignedFloatsDeleter>;
/// 64-byte aligned, zeroed floats. Throws Error("ERR_OUT_OF_MEMORY").
AlignedFloats allocate_floats(int64_t count);

/// Uninitialised floats for results that someone else will own. What is large comes from the buffers given back before,
/// where one fits: new pages cost more than the numbers in them. Thread-safe.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  /// Throws Error("ERR_OUT_OF_MEMORY").
  explicit FloatBuffer(int64_t count);

  float* data() const { return data_.get(); }
  int64_t count() const { return count_; }

  /// Leaves the memory to the caller, who gives it back with give_back().
  float* release() { return data_.release(); }
  static void give_back(float* data, int64_t count);

 private:
  struct Deleter {
    int64_t count;
    void operator()(float* data) const { give_back(data, count); }
  };
  std::unique_ptr<float[], Deleter> data_{nullptr, Deleter{0}};
  int64_t count_ = 0;
};

}  // namespace limbeck
