#include "cuda/uploads.h"

#include <algorithm>
#include <cstring>

#include "cuda/check.h"

namespace limbeck::cuda {

namespace {
constexpr size_t kAlignment = 256;  // of the pieces
}

Uploads::~Uploads() {
  for (const Chunk& chunk : chunks_) {
    cudaEventDestroy(chunk.passed);
    cudaFreeHost(chunk.pinned);
  }
}

void Uploads::copy(cudaStream_t stream, void* to, const void* from, size_t size_bytes) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  while (size_bytes > 0) {
    if (chunks_.empty() || used_ >= chunk_bytes_) next_chunk(stream);
    const size_t piece = std::min(size_bytes, chunk_bytes_ - used_);
    char* pinned = chunks_.back().pinned + used_;
    std::memcpy(pinned, source, piece);
    check_cuda(cudaMemcpyAsync(target, pinned, piece, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    used_ += (piece + kAlignment - 1) / kAlignment * kAlignment;
    target += piece;
    source += piece;
    size_bytes -= piece;
  }
}

void Uploads::next_chunk(cudaStream_t stream) {
  if (!chunks_.empty()) {
    check_cuda(cudaEventRecord(chunks_.back().passed, stream), "cudaEventRecord");
    const Chunk oldest = chunks_.front();
    const bool must_wait = chunks_.size() >= max_chunks_;
    const cudaError_t status = must_wait ? cudaEventSynchronize(oldest.passed) : cudaEventQuery(oldest.passed);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // it is none
    } else {
      check_cuda(status, "the work of the GPU");
      chunks_.pop_front();
      chunks_.push_back(oldest);
      used_ = 0;
      return;
    }
  }
  Chunk chunk{};
  check_cuda(cudaHostAlloc(&chunk.pinned, chunk_bytes_, cudaHostAllocDefault), "cudaHostAlloc");
  const cudaError_t status = cudaEventCreateWithFlags(&chunk.passed, cudaEventDisableTiming);
  if (status != cudaSuccess) cudaFreeHost(chunk.pinned);
  check_cuda(status, "cudaEventCreate");
  chunks_.push_back(chunk);
  used_ = 0;
}

}  // namespace limbeck::cuda
