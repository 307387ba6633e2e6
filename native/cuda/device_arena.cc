#include "cuda/device_arena.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"
#include "cuda/check.h"

namespace limbeck::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr uintptr_t kDryAddress = uintptr_t{1} << 44;

#ifdef LIMBECK_CUDA_EMULATED
constexpr size_t kMinBlockBytes = size_t{1} << 20;
constexpr size_t kGapBytes = kAlignment;  // between allocations, so that an overrun of one does not hit the next
#else
constexpr size_t kMinBlockBytes = size_t{32} << 20;
constexpr size_t kGapBytes = 0;
#endif

std::string mebibytes(size_t size_bytes) { return std::to_string((size_bytes + (1 << 20) - 1) >> 20) + " MiB"; }

}  // namespace

DeviceArena::~DeviceArena() { free_blocks(); }

void DeviceArena::free_blocks() {
  // Waits for the device. An error here is of work before, and was or will be reported by the next call.
  for (const Block& block : blocks_) cudaFree(block.data);
  blocks_.clear();
  current_ = used_ = 0;
}

size_t DeviceArena::used_bytes() const { return (blocks_.empty() ? 0 : blocks_[current_].before_bytes) + used_; }

size_t DeviceArena::capacity_bytes() const {
  size_t sum = 0;
  for (const Block& block : blocks_) sum += block.size_bytes;
  return sum;
}

void DeviceArena::add_block(size_t size_bytes) {
  size_t free_bytes, total_bytes;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  void* data = nullptr;
  cudaError_t status = cudaErrorMemoryAllocation;
  if (size_bytes <= free_bytes) status = cudaMalloc(&data, size_bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    int device = 0;
    cudaDeviceProp properties;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    throw Error("ERR_OUT_OF_MEMORY", "The GPU needs " + mebibytes(size_bytes) + " of memory more, " +
                                         mebibytes(free_bytes) + " of " + mebibytes(total_bytes) + " are free on " +
                                         properties.name +
                                         "; use a smaller batch or shorter sequences, or recompute activations");
  }
  check_cuda(status, "cudaMalloc");
  blocks_.push_back({static_cast<char*>(data), size_bytes, 0});
#ifdef LIMBECK_CUDA_EMULATED
  emulator::hide(stream_, data, size_bytes);
#endif
}

void DeviceArena::reserve(size_t size_bytes) {
  if (is_dry_) return;
  free_blocks();
  is_planned_ = false;
  if (size_bytes > 0) add_block((size_bytes + kAlignment - 1) / kAlignment * kAlignment);
  is_planned_ = true;
}

void DeviceArena::reset() {
  give_back(0, 0);
  if (blocks_.size() <= 1) return;
  const size_t size_bytes = capacity_bytes();
  free_blocks();
  add_block(size_bytes);
}

void DeviceArena::give_back(size_t block, size_t used) {
#ifdef LIMBECK_CUDA_EMULATED
  for (size_t i = block; i < blocks_.size() && i <= current_; ++i) {
    const size_t begin = i == block ? used : 0;
    emulator::hide(stream_, blocks_[i].data + begin, blocks_[i].size_bytes - begin);
  }
#endif
  current_ = block;
  used_ = used;
}

void* DeviceArena::allocate_items(int64_t count, size_t item_bytes) {
  constexpr auto kMaxBytes = static_cast<size_t>(std::numeric_limits<int64_t>::max() / 2);
  if (count < 0 || static_cast<size_t>(count) > kMaxBytes / item_bytes) {
    throw Error("ERR_OUT_OF_MEMORY",
                "DeviceArena: " + std::to_string(count) + " items of " + std::to_string(item_bytes) + " bytes");
  }
  const size_t size_bytes = static_cast<size_t>(count) * item_bytes;
  const size_t taken = (size_bytes + kGapBytes + kAlignment - 1) / kAlignment * kAlignment;
  if (is_dry_) {
    void* const address = reinterpret_cast<void*>(kDryAddress + used_);
    used_ += taken;
    peak_bytes_ = std::max(peak_bytes_, used_);
    return address;
  }
  if (blocks_.empty() && !is_planned_) add_block(std::max(taken, kMinBlockBytes));
  const auto fits = [&] { return !blocks_.empty() && taken <= blocks_[current_].size_bytes - used_; };
  while (!fits()) {
    if (is_planned_) {
      throw Error("ERR_OUT_OF_MEMORY",
                  "DeviceArena: more is asked for than the " + std::to_string(capacity_bytes()) + " bytes of the plan");
    }
    if (current_ + 1 == blocks_.size()) add_block(std::max({taken, kMinBlockBytes, capacity_bytes() / 2}));
    blocks_[current_ + 1].before_bytes = used_bytes();
    ++current_;
    used_ = 0;
  }
  char* const data = blocks_[current_].data + used_;
  used_ += taken;
  peak_bytes_ = std::max(peak_bytes_, used_bytes());
#ifdef LIMBECK_CUDA_EMULATED
  emulator::reveal(stream_, data, size_bytes);
#endif
  return data;
}

}  // namespace limbeck::cuda
