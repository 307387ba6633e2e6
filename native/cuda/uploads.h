#pragma once

#include <cstddef>
#include <deque>

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// Arrays of the host on their way to the device. They go through pinned memory, so that a copy does not wait for the
/// work that its stream has: from pageable memory it would. One stream; not thread-safe.
class Uploads {
 public:
  /// Takes chunks of pinned memory as they are needed, up to max_chunks: then a copy waits for the oldest.
  explicit Uploads(size_t chunk_bytes = size_t{4} << 20, size_t max_chunks = 16)
      : chunk_bytes_(chunk_bytes), max_chunks_(max_chunks) {}
  /// The stream must have passed.
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  /// Puts the copy on the stream, in pieces. `from` may change as soon as it returns. Not for a graph under capture.
  void copy(cudaStream_t stream, void* to, const void* from, size_t size_bytes);
  size_t num_chunks() const { return chunks_.size(); }

 private:
  struct Chunk {
    char* pinned;        // [chunk_bytes_]
    cudaEvent_t passed;  // recorded when the chunk was full
  };
  void next_chunk(cudaStream_t stream);

  const size_t chunk_bytes_, max_chunks_;
  std::deque<Chunk> chunks_;  // the oldest first; the last one is being filled
  size_t used_ = 0;           // bytes of the last one
};

}  // namespace limbeck::cuda
