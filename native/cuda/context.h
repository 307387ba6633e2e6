#pragma once

#include <cstdint>

#include "cuda/device_arena.h"
#include "cuda/device_code.h"

namespace limbeck::cuda {

class CublasLt;
class Uploads;

/// What an op needs besides its arguments. All pointers of ops are to device memory unless their name begins with
/// `host`. Ops return before their work is done; all work of a context is in the order of its one stream.
struct Context {
  cudaStream_t stream;
  DeviceArena& arena;  // activations, and scratch memory that an op gives back before it returns
  CublasLt& blas;
  int num_multiprocessors;
  /// Measuring: the arena counts what a pass would take, and nothing is launched, copied or read.
  bool is_dry = false;
  /// What copy_to_device() goes through; null: straight from the array, which must then outlive the work.
  Uploads* uploads = nullptr;
};

}  // namespace limbeck::cuda
