#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace limbeck::cuda::emulator {

/// Of the fiber that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

/// The lanes of one warp that take part in a collective, each with a record on the stack of its fiber.
struct WarpLanes {
  uint32_t mask;
  void* record[32];
  bool takes_part(int lane) const { return lane >= 0 && lane < 32 && (mask >> lane & 1) != 0; }
};

/// Waits until all threads of the block have come; how many of them came with `predicate`.
int wait_for_block(int predicate);
/// Waits until all lanes of the mask have come. The last one calls `finish`, which works on the records of all.
void wait_for_warp(uint32_t mask, void* record, void (*finish)(WarpLanes&));
int lane_index();
/// The dynamic shared memory of the block that runs, poisoned before each.
void* shared_memory();
/// Throws std::logic_error with the kernel's block and thread. Not [[noreturn]]: before a call that is, the address
/// sanitizer looks at the stack, of which it is told only here.
void fail_in_kernel(const char* what);

/// Of thread-block clusters. Their barrier opens when all threads that have not ended have arrived; each thread waits
/// once for each of its arrivals, or ends.
int cluster_rank();
void cluster_arrive();
void cluster_wait();
/// Writes where `shared`, an address in this block's shared memory, lies in that of another block.
void cluster_store(void* shared, int rank, uint32_t value);

/// Runs the blocks one after the other, those of a cluster (neighbours along x) in turns. Every second block begins
/// with its last thread, every second launch with its last block, so that what depends on the order comes to light.
/// Throws std::logic_error where not all threads reach a barrier, and what a thread throws.
void run_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, int cluster_size = 1);

}  // namespace limbeck::cuda::emulator
