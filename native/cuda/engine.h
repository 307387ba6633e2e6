#pragma once

#include <memory>

#include "cuda/api.h"
#include "cuda/context.h"
#include "cuda/cublas_lt.h"
#include "cuda/device_arena.h"
#include "cuda/uploads.h"

namespace limbeck::cuda {

class Results;

/// One GPU, its stream, its libraries, and the memory of the running pass.
struct Engine {
  /// Throws Error("ERR_CUDA_UNAVAILABLE") with what is missing.
  Engine(int32_t device, ApiPrecision precision);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// enqueue(), and waits for the stream.
  template <typename Body>
  void run(Body&& body, bool is_measured = false) {
    enqueue(body, is_measured);
    synchronize();
  }
  /// body(context), once to measure the memory that it takes and once for good: what would not fit is refused before
  /// anything is launched, with Error("ERR_OUT_OF_MEMORY"). Returns when all is on the stream. The arena is then that
  /// of the next call, whose work comes after on the same stream.
  ///   is_measured  a pass took the same memory, and the arena has it still
  template <typename Body>
  void enqueue(Body&& body, bool is_measured = false) {
    make_current();
    if (!is_measured) {
      DeviceArena dry_arena(true);
      Context dry = context(dry_arena, true);
      body(dry);
      if (dry_arena.peak_bytes() > arena.capacity_bytes()) {
        ++arena_generation;
        synchronize();  // work that is enqueued has its memory there
        arena.reserve(dry_arena.peak_bytes());
      }
    }
    arena.reset();
    Context context = this->context();
    try {
      body(context);
    } catch (...) {
      cudaStreamSynchronize(stream);  // copies may still write host memory that the body owned
      throw;
    }
  }
  /// Memory that lives as long as its arena: allocate(arena), once to measure and once for good.
  template <typename Allocate>
  void reserve(DeviceArena& memory, Allocate&& allocate) {
    make_current();
    DeviceArena dry(true);
    allocate(dry);
    memory.reserve(dry.peak_bytes());
    allocate(memory);
  }

  Context context() { return context(arena, false); }
  Context context(DeviceArena& memory, bool is_dry) {
    return {stream, memory, *blas, num_multiprocessors, is_dry, &uploads};
  }
  void make_current();
  /// Waits for the stream. Throws Error("ERR_CUDA") or Error("ERR_DEVICE_LOST") for what failed since the last call.
  void synchronize();

  const int32_t device;
  const ApiPrecision precision;
  int num_multiprocessors = 0;
  cudaStream_t stream = nullptr;
  cudaStream_t copy_stream = nullptr;  // of results on their way to the host
  Uploads uploads;
  std::unique_ptr<CublasLt> blas;
  DeviceArena arena;
  int64_t arena_generation = 0;  // goes up when the arena moves
  std::unique_ptr<Results> results;
};

}  // namespace limbeck::cuda
