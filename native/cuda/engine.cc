#include "cuda/engine.h"

#include <string_view>

#include "core/error.h"
#include "cuda/check.h"
#include "cuda/driver.h"
#include "cuda/results.h"

namespace limbeck::cuda {

Engine::Engine(int32_t device, ApiPrecision precision) : device(device), precision(precision) {
  num_multiprocessors = use_device(device).num_multiprocessors;
  blas = std::make_unique<CublasLt>();
  for (cudaStream_t* stream : {&main.stream, &side.stream, &copy_stream}) {
    check_cuda(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  main.arena.use_on(main.stream);
  side.arena.use_on(side.stream);
  for (cudaEvent_t* event : {&main.reached, &side.reached, &changed_}) {
    check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
  }
  results = std::make_unique<Results>(*this);
}

// Streams of a lost device cannot be destroyed; what they return is of no use then.
Engine::~Engine() {
  cudaSetDevice(device);
  results.reset();
  for (cudaStream_t stream : {main.stream, side.stream}) {
    if (stream == nullptr) continue;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  if (copy_stream != nullptr) cudaStreamDestroy(copy_stream);
  for (cudaEvent_t event : {main.reached, side.reached, changed_}) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

void Engine::make_current() { check_cuda(cudaSetDevice(device), "cudaSetDevice"); }

void Engine::synchronize() { check_cuda(cudaStreamSynchronize(main.stream), "the work of the GPU"); }

void Engine::follow(Lane& later, Lane& earlier) {
  check_cuda(cudaEventRecord(earlier.reached, earlier.stream), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(later.stream, earlier.reached, 0), "cudaStreamWaitEvent");
}

void Engine::join() {
  main_has_changes_ = true;
  if (!side_has_work_) return;
  follow(main, side);
  side_has_work_ = false;
}

void Engine::follow_changes(Lane& lane) {
  if (main_has_changes_) {
    check_cuda(cudaEventRecord(changed_, main.stream), "cudaEventRecord");
    main_has_changes_ = false;
    side_lacks_changes_ = true;
  }
  if (&lane == &main) return;
  if (side_lacks_changes_) check_cuda(cudaStreamWaitEvent(side.stream, changed_, 0), "cudaStreamWaitEvent");
  side_lacks_changes_ = false;
  side_has_work_ = true;
}

void Engine::reserve(Lane& lane, size_t size_bytes) {
  if (size_bytes <= lane.arena.capacity_bytes()) return;
  ++lane.arena_generation;
  // Work that is enqueued has its memory there, or reads what was left there.
  check_cuda(cudaDeviceSynchronize(), "the work of the GPU");
  reserve_bytes(lane.arena, size_bytes);
}

bool Engine::try_reserve_side(size_t size_bytes) {
  try {
    blas->separate(side.stream);
    reserve(side, size_bytes);
  } catch (const Error& error) {
    if (error.code() != std::string_view("ERR_OUT_OF_MEMORY")) throw;
    return false;
  }
  return true;
}

void Engine::reserve_bytes(DeviceArena& memory, size_t size_bytes) {
  try {
    memory.reserve(size_bytes);
  } catch (const Error& error) {
    if (error.code() != std::string_view("ERR_OUT_OF_MEMORY") || side.arena.capacity_bytes() == 0) throw;
    ++side.arena_generation;
    check_cuda(cudaDeviceSynchronize(), "the work of the GPU");
    side.arena.reserve(0);
    memory.reserve(size_bytes);
  }
}

}  // namespace limbeck::cuda
