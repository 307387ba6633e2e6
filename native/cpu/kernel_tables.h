#pragma once

#include "cpu/kernels.h"

namespace limbeck {

// Constant-initialised: no code of a wider instruction set runs before kernels.cc has asked the processor.
extern const CpuKernels kPortableKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx512Bf16Kernels;  // with the dot products of bfloat16 and int8
#endif

}  // namespace limbeck
