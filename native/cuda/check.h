#pragma once

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// Throws limbeck::Error unless `status` is cudaSuccess: ERR_OUT_OF_MEMORY, ERR_CUDA_UNAVAILABLE (no driver, no device,
/// too old), ERR_DEVICE_LOST (the process must make a new engine on a device that works), or ERR_CUDA.
///   what  the call, for the message
void check_cuda(cudaError_t status, const char* what);

}  // namespace limbeck::cuda
