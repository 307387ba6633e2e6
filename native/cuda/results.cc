#include "cuda/results.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "cuda/check.h"
#include "cuda/engine.h"

namespace limbeck::cuda {

namespace {

// One thread copies about 10 GB/s, less than the bus brings.
constexpr size_t kCopyPieceBytes = size_t{4} << 20;
constexpr size_t kMaxCopyThreads = 4;

void copy_host(void* to, const void* from, size_t bytes) {
  const size_t threads = std::min(kMaxCopyThreads, bytes / kCopyPieceBytes);
  if (threads < 2) {
    std::memcpy(to, from, bytes);
    return;
  }
  const size_t piece = (bytes / threads + 63) / 64 * 64;
  std::vector<std::thread> workers;
  for (size_t begin = piece; begin < bytes; begin += piece) {
    workers.emplace_back([=] {
      std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                  std::min(piece, bytes - begin));
    });
  }
  std::memcpy(to, from, std::min(piece, bytes));
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

Results::Results(Engine& engine) : engine_(engine) {
  for (Slot& slot : slots_) {
    check_cuda(cudaEventCreateWithFlags(&slot.computed, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming), "cudaEventCreate");
  }
}

Results::~Results() {
  // An error may have left copies under way into memory that others will use.
  cudaStreamSynchronize(engine_.copy_stream);
  for (Slot& slot : slots_) {
    if (slot.computed != nullptr) cudaEventDestroy(slot.computed);
    if (slot.arrived != nullptr) cudaEventDestroy(slot.arrived);
  }
}

void Results::plan(Context& context, size_t slot_bytes) {
  is_dry_ = context.is_dry;
  slot_bytes_ = slot_bytes;
  for (Slot& slot : slots_) slot.device = context.arena.allocate<char>(static_cast<int64_t>(slot_bytes));
  if (!is_dry_) engine_.require_pinned(2 * slot_bytes);
}

void Results::begin() {
  current_ = 1 - current_;
  collect(current_);
  Slot& slot = slots_[current_];
  slot.used = 0;
  slot.entries.clear();
}

void* Results::add_bytes(void* host, size_t bytes) {
  Slot& slot = slots_[current_];
  const size_t offset = slot.used;
  slot.entries.push_back({host, offset, bytes});
  slot.used += padded_bytes(bytes);
  return slot.device + offset;
}

void Results::end(Context& context) {
  Slot& slot = slots_[current_];
  if (is_dry_ || slot.used == 0) return;
  check_cuda(cudaEventRecord(slot.computed, context.stream), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(engine_.copy_stream, slot.computed, 0), "cudaStreamWaitEvent");
  char* pinned = engine_.pinned + static_cast<size_t>(current_) * slot_bytes_;
  check_cuda(cudaMemcpyAsync(pinned, slot.device, slot.used, cudaMemcpyDeviceToHost, engine_.copy_stream),
             "cudaMemcpyAsync");
  check_cuda(cudaEventRecord(slot.arrived, engine_.copy_stream), "cudaEventRecord");
  slot.is_on_its_way = true;
  collect(1 - current_);  // while this slot is computed and sent
}

void Results::finish() {
  collect(1 - current_);
  collect(current_);
}

void Results::collect(int index) {
  Slot& slot = slots_[index];
  if (!slot.is_on_its_way) return;
  check_cuda(cudaEventSynchronize(slot.arrived), "cudaEventSynchronize");
  slot.is_on_its_way = false;
  const char* pinned = engine_.pinned + static_cast<size_t>(index) * slot_bytes_;
  for (const Entry& entry : slot.entries) copy_host(entry.host, pinned + entry.offset, entry.bytes);
}

}  // namespace limbeck::cuda
