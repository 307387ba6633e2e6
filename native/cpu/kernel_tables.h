#pragma once

#include "cpu/kernels.h"

namespace limbeck {

// Constant-initialised: no code of a wider instruction set runs before kernels.cc has asked the processor.
extern const CpuKernels kPortableKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#endif

}  // namespace limbeck
