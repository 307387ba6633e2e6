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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")

namespace limbeck {
namespace avx512bf16 {

#define LIMBECK_LANES 16
#define LIMBECK_HAS_DOT_PRODUCTS  // of bfloat16 and of int8
#include "cpu/kernels.inl.h"

}  // namespace avx512bf16

constexpr CpuKernels kAvx512Bf16Kernels = avx512bf16::make_kernels("avx512bf16");

}  // namespace limbeck

#endif
