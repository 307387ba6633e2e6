#pragma once

#include <cstddef>
#include <cstdint>

namespace limbeck {

/// CRC-32C (Castagnoli, RFC 3720 §12.1) of the bytes, table driven. `before` is that of the bytes before these.
uint32_t crc32c(const void* data, size_t size_bytes, uint32_t before = 0);

}  // namespace limbeck
