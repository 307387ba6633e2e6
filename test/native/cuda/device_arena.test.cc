#include "cuda/device_arena.h"

#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 256 == 0; }

/// Allocations of one step.
void allocate_step(DeviceArena& arena) {
  arena.allocate<float>(1000);
  {
    DeviceArena::Scope scope(arena);
    arena.allocate<bf16>(70000);
  }
  DeviceArena::Scope scope(arena);
  arena.allocate<double>(1);
  arena.allocate<char>(0);
}

}  // namespace

TEST("device arena: memory is aligned, and its own") {
  DeviceArena arena;
  float* a = arena.allocate<float>(3);
  float* b = arena.allocate<float>(70);
  CHECK(is_aligned(a) && is_aligned(b) && b >= a + 64);
  CHECK(cudaMemset(a, 0, 12) == cudaSuccess && cudaMemset(b, 1, 280) == cudaSuccess);
  std::vector<float> host(3, 1.0f);
  CHECK(cudaMemcpy(host.data(), a, 12, cudaMemcpyDeviceToHost) == cudaSuccess && host == std::vector<float>(3));
}

TEST("device arena: a scope gives its memory back") {
  DeviceArena arena;
  arena.allocate<char>(1);
  const size_t before = arena.used_bytes();
  char* first;
  {
    DeviceArena::Scope scope(arena);
    first = arena.allocate<char>(1000);
    arena.allocate<char>(100 << 20);  // in a block of its own
    CHECK(arena.used_bytes() > size_t{100} << 20);
  }
  CHECK(arena.used_bytes() == before);
  CHECK(arena.allocate<char>(1000) == first);
}

TEST("device arena: a measured step fits into what was measured, and no more") {
  DeviceArena dry(true);
  allocate_step(dry);
  const size_t peak = dry.peak_bytes();
  CHECK(peak >= 4000 + 140000 && dry.capacity_bytes() == 0);
  dry.reset();
  CHECK(dry.used_bytes() == 0 && dry.peak_bytes() == peak);

  DeviceArena arena;
  arena.reserve(peak);
  CHECK(arena.capacity_bytes() == peak);
  allocate_step(arena);
  CHECK(arena.peak_bytes() == peak);
  CHECK_ERROR("ERR_OUT_OF_MEMORY", allocate_step(arena));
  arena.reserve(2 * peak);
  CHECK(arena.used_bytes() == 0 && arena.capacity_bytes() == 2 * peak);
  allocate_step(arena);
}

TEST("device arena: a reset joins the blocks") {
  DeviceArena arena;
  arena.allocate<char>(1);
  arena.allocate<char>(100 << 20);
  const size_t capacity = arena.capacity_bytes();
  arena.reset();
  CHECK(arena.used_bytes() == 0 && arena.capacity_bytes() == capacity);
  arena.allocate<char>(static_cast<int64_t>(capacity / 2));  // in the one block
  CHECK(arena.capacity_bytes() == capacity);
}

TEST("device arena: impossible sizes") {
  DeviceArena arena, dry(true);
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<float>(-1));
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<float>(int64_t{1} << 62));
  CHECK_ERROR("ERR_OUT_OF_MEMORY", dry.allocate<float>(int64_t{1} << 62));
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.reserve(size_t{1} << 50));
  CHECK(is_aligned(arena.allocate<float>(0)));
}
