#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cuda/cublas_lt.h"

namespace limbeck::cuda {

/// A device of this machine.
struct DeviceInfo {
  int index;
  std::string name;
  int major, minor;  // compute capability
  int num_multiprocessors;
  size_t total_bytes;
  size_t free_bytes;    // 0 where it cannot be asked
  std::string problem;  // why it cannot be used, and what to do; empty: it can
};

/// What this machine has. Never throws.
struct DriverInfo {
  int driver_version;   // 1000·major + 10·minor of the newest CUDA that the driver runs; 0: there is none
  int runtime_version;  // that this library was built for
  std::string problem;  // why no device can be used, or empty
  std::vector<DeviceInfo> devices;
  std::string cublas_path;     // the library that open_cublas_lt() found, or empty
  std::string cublas_problem;  // why there is none
};
/// Free memory is asked of device `memory_of` alone: to be asked takes some of it, as long as the process lives.
constexpr int kAllDevices = -1, kNoDevice = -2;
DriverInfo inspect_driver(int memory_of = kAllDevices);

/// Makes `index` the device of this thread. Throws ERR_CUDA_UNAVAILABLE that says what is missing and what to do.
DeviceInfo use_device(int index);

/// Multiprocessors of the current device where it is of compute capability 9.0, else 0.
int hopper_multiprocessors();

/// cuBLASLt as it was found.
struct CublasLtLibrary {
  lt::Functions functions{};
  std::string path;     // empty: there is none
  std::string problem;  // why, where it was looked for and what to do
};

/// Looks for it and opens it: where the environment variable LIMBECK_CUBLAS_PATH names a library, or a folder with one,
/// that; else on the loader's path, in the CUDA toolkit, or in the Python package nvidia-cublas. Never throws.
CublasLtLibrary find_cublas_lt();

/// Its functions, looked for at the first call. Throws ERR_CUDA_UNAVAILABLE.
lt::Functions open_cublas_lt();

}  // namespace limbeck::cuda
