#if defined(__x86_64__)

// GCC's own headers make values from nothing, and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"

// From here on alone: what the headers above define must stay runnable on every processor.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

namespace limbeck {
namespace avx512 {

#define LIMBECK_LANES 16
#include "cpu/kernels.inl.h"

}  // namespace avx512

constexpr CpuKernels kAvx512Kernels = avx512::make_kernels("avx512");

}  // namespace limbeck

#endif
