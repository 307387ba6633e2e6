#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define LIMBECK_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LIMBECK_ADDRESS_SANITIZER
#endif
#endif

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

}  // namespace limbeck::cuda::emulator
