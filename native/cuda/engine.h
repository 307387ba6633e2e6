#pragma once

#include <memory>

#include "cuda/api.h"
#include "cuda/context.h"
#include "cuda/cublas_lt.h"
#include "cuda/device_arena.h"
#include "cuda/uploads.h"

namespace limbeck::cuda {

class Results;

/// A stream, and the memory of the pass that is on it.
struct Lane {
  cudaStream_t stream = nullptr;
  Uploads uploads;
  DeviceArena arena;
  int64_t arena_generation = 0;  // goes up when the arena moves
  int64_t num_passes = 0;        // forward passes that are not finished
  cudaEvent_t reached = nullptr;
};

/// One GPU, its streams, its libraries, and the memory of the running passes. All work is on the main lane, but what
/// may run beside it: then kernels of one lane use what those of the other leave idle. Work on the main lane comes
/// after all that the side lane had when its context was made.
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
    if (!is_measured) reserve_for(body);
    make_current();
    enqueue_on(main, context(), body);
  }
  /// The measuring of enqueue(): then what comes there is measured.
  template <typename Body>
  void reserve_for(Body&& body) {
    make_current();
    reserve(main, measured_bytes(body));
  }
  /// The same for a forward pass, which changes nothing but its results. It runs beside those before that are not
  /// finished, where there is memory for two at once; it comes after all other work. Returns the lane that it took: the
  /// caller counts its passes there.
  template <typename Body>
  Lane& enqueue_forward(Body&& body) {
    make_current();
    const size_t size_bytes = measured_bytes(body);
    // The lane with fewer of them; by turns where both have as many.
    const bool is_even = side.num_passes == main.num_passes;
    const bool takes_side = is_even ? main.num_passes > 0 && !last_took_side_ : side.num_passes < main.num_passes;
    last_took_side_ = takes_side && try_reserve_side(size_bytes);
    Lane& lane = last_took_side_ ? side : main;
    if (&lane == &main) reserve(main, size_bytes);
    follow_changes(lane);
    enqueue_on(lane, lane_context(lane, lane.arena, false), body);
    return lane;
  }
  /// The same on the side lane, in no order to the work of the main lane but what the caller gives it, both ways (see
  /// follow()). False, and nothing done, where there is no memory for it. It keeps its arena until the next work there,
  /// or until reserve_for() finds no other memory: then side.arena_generation goes up.
  template <typename Body>
  bool enqueue_beside(Body&& body) {
    make_current();
    if (!try_reserve_side(measured_bytes(body))) return false;
    enqueue_on(side, lane_context(side, side.arena, false), body);
    return true;
  }
  /// What comes on the one lane waits for what the other has so far.
  void follow(Lane& later, Lane& earlier);

  /// Memory that lives as long as its arena: allocate(arena), once to measure and once for good.
  template <typename Allocate>
  void reserve(DeviceArena& memory, Allocate&& allocate) {
    make_current();
    DeviceArena dry(true);
    allocate(dry);
    reserve_bytes(memory, dry.peak_bytes());
    allocate(memory);
  }

  /// For work of the main lane that is put there before any other.
  Context context() { return context(main.arena, false); }
  Context context(DeviceArena& memory, bool is_dry) {
    if (!is_dry) join();
    return lane_context(main, memory, is_dry);
  }
  void make_current();
  /// Waits for the main lane. Throws Error("ERR_CUDA") or Error("ERR_DEVICE_LOST") for what failed since the last call.
  void synchronize();

  const int32_t device;
  const ApiPrecision precision;
  int num_multiprocessors = 0;
  int64_t mlp_bytes = 512'000'000;     // see set_mlp_bytes of api.h
  cudaStream_t copy_stream = nullptr;  // of results on their way to the host
  std::unique_ptr<CublasLt> blas;
  Lane main, side;
  std::unique_ptr<Results> results;

 private:
  Context lane_context(Lane& lane, DeviceArena& memory, bool is_dry) {
    return {lane.stream, memory, *blas, num_multiprocessors, is_dry, &lane.uploads};
  }
  template <typename Body>
  size_t measured_bytes(Body&& body) {
    DeviceArena dry_arena(true);
    Context dry = lane_context(main, dry_arena, true);
    body(dry);
    return dry_arena.peak_bytes();
  }
  template <typename Body>
  void enqueue_on(Lane& lane, Context context, Body&& body) {
    lane.arena.reset();
    try {
      body(context);
    } catch (...) {
      cudaStreamSynchronize(lane.stream);  // copies may still write host memory that the body owned
      throw;
    }
  }
  /// At least this much, for the next pass of the lane.
  void reserve(Lane& lane, size_t size_bytes);
  bool try_reserve_side(size_t size_bytes);
  /// Takes the memory of the side lane, where there is no other.
  void reserve_bytes(DeviceArena& memory, size_t size_bytes);
  /// The main lane follows the side lane; what comes on it may change what passes read.
  void join();
  /// A forward pass comes next on the lane.
  void follow_changes(Lane& lane);

  cudaEvent_t changed_ = nullptr;    // after the last work of the main lane that was no forward pass
  bool main_has_changes_ = true;     // such work since changed_ was recorded
  bool side_lacks_changes_ = false;  // the side lane does not follow changed_ yet
  bool side_has_work_ = false;       // since join()
  bool last_took_side_ = false;      // the last forward pass
};

}  // namespace limbeck::cuda
