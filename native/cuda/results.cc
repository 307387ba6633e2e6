#include "cuda/results.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/check.h"
#include "cuda/engine.h"

namespace limbeck::cuda {

namespace {

// One thread copies about 10 GB/s, less than the bus brings.
constexpr int kMaxCopyThreads = 8;
constexpr size_t kCopyPieceBytes = size_t{1} << 20;  // a multiple of an element

constexpr size_t kMinSlotBytes = size_t{64} << 10, kSlotStepBytes = size_t{16} << 20;

/// Of a slot that grows: passes that differ by a few tokens do not make it grow again.
size_t rounded_up(size_t bytes) {
  size_t size = kMinSlotBytes;
  while (size < bytes && size < Results::kMaxPieceBytes) size *= 2;
  return size >= bytes ? size : (bytes + kSlotStepBytes - 1) / kSlotStepBytes * kSlotStepBytes;
}

void widen(const uint16_t* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t{from[i]} << 16;
    std::memcpy(to + i, &bits, sizeof(bits));
  }
}

/// Bytes [begin, begin + size) of what arrived.
void copy_part(void* host, const char* from, size_t begin, size_t size, bool is_widened) {
  if (is_widened) {
    widen(reinterpret_cast<const uint16_t*>(from + begin), static_cast<float*>(host) + begin / sizeof(uint16_t),
          size / sizeof(uint16_t));
  } else {
    std::memcpy(static_cast<char*>(host) + begin, from + begin, size);
  }
}

}  // namespace

Results::~Results() {
  // An error may have left copies under way. Events of a lost device cannot be destroyed.
  cudaStreamSynchronize(engine_.copy_stream);
  for (Slot& slot : slots_) {
    if (slot.computed != nullptr) cudaEventDestroy(slot.computed);
    if (slot.arrived != nullptr) cudaEventDestroy(slot.arrived);
    if (slot.pinned != nullptr) cudaFreeHost(slot.pinned);
  }
}

void Results::reserve(size_t num_pieces, size_t size_bytes) {
  engine_.make_current();
  turns_ = size_bytes > kMaxPieceBytes ? kLargeSlots : kSlots;
  for (size_t i = 0; i < std::min(num_pieces, turns_); ++i) {
    Slot& slot = slots_[(next_ + i) % turns_];
    if (slot.size_bytes < size_bytes || slot.size_bytes == 0) grow(slot, rounded_up(size_bytes));
  }
}

void Results::grow(Slot& slot, size_t size_bytes) {
  deliver(slot);
  slot.size_bytes = 0;
  if (slot.pinned != nullptr) check_cuda(cudaFreeHost(slot.pinned), "cudaFreeHost");
  slot.pinned = nullptr;
  for (cudaEvent_t* event : {&slot.computed, &slot.arrived}) {
    if (*event == nullptr) check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
  }
  engine_.reserve(slot.memory,
                  [&](DeviceArena& memory) { slot.device = memory.allocate<char>(static_cast<int64_t>(size_bytes)); });
  check_cuda(cudaHostAlloc(&slot.pinned, size_bytes, cudaHostAllocDefault), "cudaHostAlloc");
  slot.size_bytes = size_bytes;
}

void Results::begin(Context& context, const void* owner) {
  is_dry_ = context.is_dry;
  if (is_dry_) return;
  current_ = &slots_[next_ % turns_];
  ++next_;
  deliver(*current_);
  current_->memory.use_on(context.stream);
  current_->memory.reset();
  current_->device = current_->memory.allocate<char>(static_cast<int64_t>(current_->size_bytes));
  current_->owner = owner;
}

void* Results::add_bytes(void* host, size_t bytes, bool is_widened) {
  constexpr uintptr_t kDryAddress = uintptr_t{1} << 45;
  if (is_dry_) return reinterpret_cast<void*>(kDryAddress);
  Slot& slot = *current_;
  const size_t offset = slot.used;
  slot.entries.push_back({host, offset, bytes, is_widened});
  slot.used += padded_bytes(bytes);
  if (slot.used > slot.size_bytes) throw Error("ERR_CUDA", "A pass has more results than were planned.");
  return slot.device + offset;
}

void Results::end(Context& context) {
  if (is_dry_) return;
  Slot& slot = *current_;
  check_cuda(cudaEventRecord(slot.computed, context.stream), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(engine_.copy_stream, slot.computed, 0), "cudaStreamWaitEvent");
  if (slot.used > 0) {
    check_cuda(cudaMemcpyAsync(slot.pinned, slot.device, slot.used, cudaMemcpyDeviceToHost, engine_.copy_stream),
               "cudaMemcpyAsync");
  }
  check_cuda(cudaEventRecord(slot.arrived, engine_.copy_stream), "cudaEventRecord");
  slot.is_on_its_way = true;
}

void Results::collect(const void* owner) {
  for (size_t i = 0; i < kSlots; ++i) {  // the oldest first, where all take turns
    Slot& slot = slots_[(next_ + i) % kSlots];
    if (slot.owner == owner) deliver(slot);
  }
}

void Results::drop(const void* owner) {
  for (Slot& slot : slots_) {
    if (slot.owner != owner) continue;
    slot.owner = nullptr;
    slot.entries.clear();
  }
}

/// Leaves the slot empty.
void Results::deliver(Slot& slot) {
  if (slot.is_on_its_way) {
    check_cuda(cudaEventSynchronize(slot.arrived), "cudaEventSynchronize");
    slot.is_on_its_way = false;
    for (const Entry& entry : slot.entries) copy_out(entry, slot.pinned + entry.offset);
  }
  slot.owner = nullptr;
  slot.entries.clear();
  slot.used = 0;
}

void Results::copy_out(const Entry& entry, const char* pinned) {
  if (entry.bytes <= kCopyPieceBytes) return copy_part(entry.host, pinned, 0, entry.bytes, entry.is_widened);
  if (pool_ == nullptr) pool_ = std::make_unique<ThreadPool>(std::min(kMaxCopyThreads, available_threads()));
  pool_->parallel_for(
      static_cast<int64_t>((entry.bytes + kCopyPieceBytes - 1) / kCopyPieceBytes), [&](int64_t index, int) {
        const size_t begin = static_cast<size_t>(index) * kCopyPieceBytes;
        copy_part(entry.host, pinned, begin, std::min(kCopyPieceBytes, entry.bytes - begin), entry.is_widened);
      });
}

}  // namespace limbeck::cuda
