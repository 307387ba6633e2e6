#include "cuda/engine.h"

#include "core/error.h"
#include "cuda/check.h"
#include "cuda/driver.h"
#include "cuda/results.h"

namespace limbeck::cuda {

Engine::Engine(int32_t device, ApiPrecision precision) : device(device), precision(precision) {
  num_multiprocessors = use_device(device).num_multiprocessors;
  blas = std::make_unique<CublasLt>();
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  check_cuda(cudaStreamCreateWithFlags(&copy_stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  results = std::make_unique<Results>(*this);
}

// Streams of a lost device cannot be destroyed; what they return is of no use then.
Engine::~Engine() {
  cudaSetDevice(device);
  results.reset();
  if (stream != nullptr) {
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  if (copy_stream != nullptr) cudaStreamDestroy(copy_stream);
}

void Engine::make_current() { check_cuda(cudaSetDevice(device), "cudaSetDevice"); }

void Engine::synchronize() { check_cuda(cudaStreamSynchronize(stream), "the work of the GPU"); }

}  // namespace limbeck::cuda
