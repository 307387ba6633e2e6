#pragma once

#include <cstddef>

// LIMBECK_ADDRESS_SANITIZER: defined in a build with it, also for files that it does not instrument.
#ifdef LIMBECK_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace limbeck::cuda::emulator {

/// Makes the address sanitizer stop the program at an access; without it, nothing.
inline void poison([[maybe_unused]] const void* address, [[maybe_unused]] size_t size_bytes) {
#ifdef LIMBECK_ADDRESS_SANITIZER
  __asan_poison_memory_region(address, size_bytes);
#endif
}
inline void unpoison([[maybe_unused]] const void* address, [[maybe_unused]] size_t size_bytes) {
#ifdef LIMBECK_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(address, size_bytes);
#endif
}

/// False where an access would stop the program.
inline bool may_access([[maybe_unused]] const void* address, [[maybe_unused]] size_t size_bytes) {
#ifdef LIMBECK_ADDRESS_SANITIZER
  return __asan_region_is_poisoned(const_cast<void*>(address), size_bytes) == nullptr;
#else
  return true;
#endif
}

}  // namespace limbeck::cuda::emulator
