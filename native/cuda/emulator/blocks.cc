#include "cuda/emulator/blocks.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulator/device.h"
#include "cuda/emulator/fiber.h"
#include "cuda/emulator/sanitizer.h"

namespace limbeck::cuda::emulator {
namespace {

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct AsyncCopy {
  void* shared;
  const void* global;  // null: zeros
};

struct Thread {
  uint3 index;
  State state;
  std::unique_ptr<Fiber> fiber;
  std::vector<std::vector<AsyncCopy>> copies;  // groups, the open one last
};

struct Warp {
  WarpLanes lanes;          // records of those who wait
  uint32_t ready, waiting;  // masks
  uint32_t masks[32];       // that the waiting lanes came with
  void (*finish[32])(WarpLanes&);
};

/// The block that runs.
struct Block {
  std::vector<Thread> threads;  // kept from block to block for their stacks
  std::vector<Warp> warps;
  int num_threads = 0, num_at_barrier = 0, num_done = 0, num_predicates = 0, predicates_of_last = 0;
  int current = 0;
  char* shared = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
};

Block& block() {
  static Block the_block;
  return the_block;
}

void run_thread() {
  try {
    (*block().kernel)();
  } catch (...) {
    if (!block().error) block().error = std::current_exception();
  }
  Block& b = block();
  b.threads[b.current].state = State::kDone;
  ++b.num_done;
}

void resume(int index) {
  Block& b = block();
  b.current = index;
  threadIdx = b.threads[index].index;
  b.warps[index / 32].ready &= ~(1u << index % 32);
  b.threads[index].fiber->resume();
}

void make_ready(int index) {
  Block& b = block();
  b.threads[index].state = State::kReady;
  b.warps[index / 32].ready |= 1u << index % 32;
}

std::string place() {
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  return " [block " + triple(blockIdx) + ", thread " + triple(threadIdx) + "]";
}

[[noreturn]] void report_stuck() {
  Block& b = block();
  int in_collectives = 0, example = 0;
  for (int i = 0; i < b.num_threads; ++i) {
    if (b.threads[i].state == State::kInCollective) ++in_collectives, example = i;
    if (b.threads[i].state == State::kAtBarrier && in_collectives == 0) example = i;
  }
  threadIdx = b.threads[example].index;
  std::string message = "no thread of the block can go on: of " + std::to_string(b.num_threads) + " threads " +
                        std::to_string(b.num_at_barrier) + " wait at __syncthreads, " + std::to_string(in_collectives) +
                        " in a collective of their warp, " + std::to_string(b.num_done) + " have ended";
  if (in_collectives > 0) {
    const Warp& warp = b.warps[example / 32];
    char masks[80];
    std::snprintf(masks, sizeof(masks), "; one waits for lanes %08x, of which %08x came", warp.masks[example % 32],
                  warp.waiting & warp.masks[example % 32]);
    message += masks;
  }
  throw std::logic_error(message + place());
}

/// Runs the threads of a block to their ends, backward if asked.
void run_block(bool backward) {
  Block& b = block();
  const int num_warps = static_cast<int>(b.warps.size());
  while (b.num_done < b.num_threads) {
    bool progress = false;
    for (int w = 0; w < num_warps; ++w) {
      const int index = backward ? num_warps - 1 - w : w;
      Warp& warp = b.warps[index];
      while (warp.ready != 0) {
        progress = true;
        for (uint32_t ready = warp.ready; ready != 0;) {
          const int lane = backward ? 31 - __builtin_clz(ready) : __builtin_ctz(ready);
          ready &= ~(1u << lane);
          resume(index * 32 + lane);
          if (b.error) std::rethrow_exception(b.error);
        }
      }
    }
    if (b.num_at_barrier == b.num_threads) {
      b.predicates_of_last = b.num_predicates;
      b.num_at_barrier = b.num_predicates = 0;
      for (int i = 0; i < b.num_threads; ++i) make_ready(i);
    } else if (!progress) {
      report_stuck();
    }
  }
}

}  // namespace

int wait_for_block(int predicate) {
  Block& b = block();
  b.threads[b.current].state = State::kAtBarrier;
  ++b.num_at_barrier;
  b.num_predicates += predicate;
  Fiber::pause();
  return b.predicates_of_last;
}

void wait_for_warp(uint32_t mask, void* record, void (*finish)(WarpLanes&)) {
  Block& b = block();
  Warp& warp = b.warps[b.current / 32];
  const int lane = b.current % 32;
  if ((mask >> lane & 1) == 0) fail_in_kernel("a lane calls a collective whose mask leaves it out");
  warp.lanes.record[lane] = record;
  warp.masks[lane] = mask;
  warp.finish[lane] = finish;
  warp.waiting |= 1u << lane;
  if ((warp.waiting & mask) != mask) {
    b.threads[b.current].state = State::kInCollective;
    Fiber::pause();
    return;
  }
  for (int other = 0; other < 32; ++other) {
    if ((mask >> other & 1) != 0 && (warp.masks[other] != mask || warp.finish[other] != finish)) {
      fail_in_kernel("lanes of one warp meet in different collectives, or with different masks");
    }
  }
  warp.lanes.mask = mask;
  finish(warp.lanes);
  warp.waiting &= ~mask;
  for (int other = 0; other < 32; ++other) {
    if (other != lane && (mask >> other & 1) != 0) make_ready(b.current / 32 * 32 + other);
  }
}

int lane_index() { return block().current % 32; }

void* shared_memory() { return block().shared; }

void fail_in_kernel(const char* what) { throw std::logic_error(what + place()); }

void run_blocks(dim3 grid, dim3 block_size, size_t shared_bytes, const std::function<void()>& kernel) {
  static std::mutex mutex;  // engines of several threads take turns: the names of device code are global
  const std::lock_guard<std::mutex> lock(mutex);
  static uint64_t num_launches = 0;
  const uint64_t launch = num_launches++;
  Block& b = block();
  b.num_threads = static_cast<int>(block_size.x * block_size.y * block_size.z);
  while (static_cast<int>(b.threads.size()) < b.num_threads) {
    b.threads.push_back({{}, State::kDone, std::make_unique<Fiber>(run_thread), {}});
  }
  b.warps.resize((b.num_threads + 31) / 32);
  b.kernel = &kernel;
  b.error = nullptr;
  blockDim = block_size;
  gridDim = grid;
  // Exactly so large that the address sanitizer sees what lies beyond; its own alignment is 16, the device's 1024.
  void* shared = nullptr;
  if (shared_bytes > 0 && posix_memalign(&shared, 1024, shared_bytes) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(shared, std::free);
  b.shared = static_cast<char*>(shared);

  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < num_blocks; ++i) {
    const uint64_t number = launch % 2 == 0 ? i : num_blocks - 1 - i;
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
    if (shared_bytes > 0) std::memset(shared, 0xFF, shared_bytes);
    b.num_at_barrier = b.num_done = b.num_predicates = 0;
    for (Warp& warp : b.warps) warp.ready = warp.waiting = 0;
    for (int t = 0; t < b.num_threads; ++t) {
      const unsigned u = static_cast<unsigned>(t);
      b.threads[t].index = {u % block_size.x, u / block_size.x % block_size.y, u / block_size.x / block_size.y};
      b.threads[t].copies.clear();
      make_ready(t);
    }
    try {
      run_block((launch + i) % 2 != 0);
    } catch (...) {
      for (Thread& thread : b.threads) thread.fiber->abandon();
      throw;
    }
  }
}

// ---- Collectives that device.h only declares.

namespace {

struct Mma {
  float* d;
  const uint32_t *a, *b;
};

float half_of(uint32_t packed, int half) { return __uint_as_float(half == 0 ? packed << 16 : packed & 0xFFFF0000u); }

void finish_mma(WarpLanes& lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<Mma*>(lanes.record[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = half_of(mma.a[i], half);
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][g] = half_of(mma.b[i], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<Mma*>(lanes.record[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      float sum = d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      d[i] = sum;
    }
  }
}

struct MatrixLoad {
  uint32_t* r;
  const void* row;
  int count;
  bool transpose;
};

void finish_load(WarpLanes& lanes) {
  const MatrixLoad& first = *static_cast<MatrixLoad*>(lanes.record[0]);
  for (int matrix = 0; matrix < first.count; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* address = static_cast<MatrixLoad*>(lanes.record[matrix * 8 + row])->row;
      if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
        fail_in_kernel("a row of ldmatrix is not aligned to 16 bytes");
      if (!may_access(address, 16)) fail_in_kernel("ldmatrix reads memory that is not the kernel's");
      std::memcpy(elements[row], address, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint32_t low = first.transpose ? elements[column][row] : elements[row][column];
      const uint32_t high = first.transpose ? elements[column + 1][row] : elements[row][column + 1];
      static_cast<MatrixLoad*>(lanes.record[lane])->r[matrix] = low | high << 16;
    }
  }
}

}  // namespace

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Mma mma{d, a, b};
  wait_for_warp(0xFFFFFFFFu, &mma, finish_mma);
}

void load_matrices(uint32_t* r, int count, bool transpose, const void* shared_row) {
  MatrixLoad load{r, shared_row, count, transpose};
  wait_for_warp(0xFFFFFFFFu, &load, finish_load);
}

void cp_async_16(void* shared, const void* global, bool valid) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) {
    fail_in_kernel("cp_async_16 needs addresses aligned to 16 bytes");
  }
  if (!may_access(shared, 16)) fail_in_kernel("cp_async_16 writes to memory that is not the kernel's");
  if (valid && !may_access(global, 16)) fail_in_kernel("cp_async_16 reads memory that is not the kernel's");
  auto& groups = block().threads[block().current].copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({shared, valid ? global : nullptr});
  std::memset(shared, 0xFF, 16);
}

void cp_async_commit() {
  auto& groups = block().threads[block().current].copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();  // the open one
}

void finish_copies(int groups_left) {
  auto& groups = block().threads[block().current].copies;
  while (static_cast<int>(groups.size()) > groups_left + 1) {
    for (const AsyncCopy& copy : groups.front()) {
      if (copy.global == nullptr) {
        std::memset(copy.shared, 0, 16);
      } else {
        std::memcpy(copy.shared, copy.global, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace limbeck::cuda::emulator
