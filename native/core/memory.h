#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace limbeck {

/// 64-byte aligned memory for std::free(), or null. What spans huge pages is aligned to them and asks for them: a table
/// of a hundred megabytes has more small pages than the processor remembers.
void* allocate_aligned(size_t size_bytes);

/// Bytes that this process may still take: MemAvailable and the cgroup limit, whichever is less.
size_t available_memory_bytes();

struct AlignedFloatsDeleter {
  void operator()(float* data) const;
};
using AlignedFloats = std::unique_ptr<float[], AlignedFloatsDeleter>;
/// 64-byte aligned, zeroed floats. Throws Error("ERR_OUT_OF_MEMORY").
AlignedFloats allocate_floats(int64_t count);

}  // namespace limbeck
