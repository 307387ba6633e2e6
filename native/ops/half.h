#pragma once

#include <cstdint>

namespace limbeck {

/// fp32 to the nearest bfloat16, ties to even; y holds its bits. NaN stays NaN.   x, y [count]
void to_bfloat16(const float* x, uint16_t* y, int64_t count);
/// fp32 to the nearest IEEE half, ties to even; what is beyond ±65504 becomes infinite.   x, y [count]
void to_float16(const float* x, uint16_t* y, int64_t count);

}  // namespace limbeck
