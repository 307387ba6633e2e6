#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"

namespace limbeck {
namespace portable {

#define LIMBECK_LANES 4
#include "cpu/kernels.inl.h"

}  // namespace portable

constexpr CpuKernels kPortableKernels = portable::make_kernels("portable");

}  // namespace limbeck
