#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"

// From here on alone: what the headers above define must stay runnable on every processor.
#pragma GCC target("avx2,fma,f16c")

namespace limbeck {
namespace avx2 {

#define LIMBECK_LANES 8
#include "cpu/kernels.inl.h"

}  // namespace avx2

constexpr CpuKernels kAvx2Kernels = avx2::make_kernels("avx2");

}  // namespace limbeck

#endif
