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

enum class State { kReady, kAtBarrier, kAtClusterBarrier, kInCollective, kDone };

struct AsyncCopy {
  void* shared;
  const void* global;  // null: zeros
};

constexpr int kMaxColumns = 256;

/// A lane's part of a product of its warpgroup.
struct Product {
  float* sums;
  int columns;
  const uint32_t* a;  // null: a is in shared memory
  uint64_t a_matrix, b_matrix;
  bool transposed, adds;
};
struct PendingProduct : Product {
  uint32_t a_then[4];
  uint64_t operands_then;  // hash of what the warp read in shared memory
  float result[kMaxColumns / 2];
};

/// What a thread has begun and not waited for, in groups; the last of them is open. Memory is kept and items are seldom
/// moved, because the address sanitizer makes both dear.
template <typename T>
struct Groups {
  static constexpr size_t kMaxWaited = 64;
  std::vector<T> items;
  size_t first = 0;          // item that was not waited for
  std::vector<size_t> ends;  // in items, of the groups that are closed

  void clear() {
    items.clear();
    ends.clear();
    first = 0;
  }
  void close() { ends.push_back(items.size()); }
  void remove_first() {
    first = ends.front();
    ends.erase(ends.begin());
    if (first < items.size() && first < kMaxWaited) return;
    items.erase(items.begin(), items.begin() + static_cast<ptrdiff_t>(first));
    for (size_t& end : ends) end -= first;
    first = 0;
  }
};

struct Thread {
  uint3 index;
  State state;
  std::unique_ptr<Fiber> fiber;
  Groups<AsyncCopy> copies;
  Groups<PendingProduct> products;
  bool has_fenced = false, has_copied = false;
  bool has_arrived = false;  // at the barrier of the cluster
  int num_arrivals = 0;

  void reset() {
    copies.clear();
    products.clear();
    has_fenced = has_copied = has_arrived = false;
    num_arrivals = 0;
  }
};

struct Warp {
  WarpLanes lanes;          // records of those who wait
  uint32_t ready, waiting;  // masks
  uint32_t masks[32];       // that the waiting lanes came with
  void (*finish[32])(WarpLanes&);
  int num_products;
};

/// A block of the cluster that runs.
struct Block {
  uint3 index;
  std::vector<Thread> threads;  // kept from block to block for their stacks
  std::vector<Warp> warps;
  int num_threads = 0, num_at_barrier = 0, num_done = 0, num_predicates = 0, predicates_of_last = 0;
  int current = 0;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::unique_ptr<void, decltype(&std::free)> shared_owner{nullptr, std::free};
};

/// The blocks that run at once: one, where a kernel was launched without clusters.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;  // kept for their fibers
  int size = 0, current = 0;
  int num_awaited = 0;   // threads that live and have not arrived at the barrier
  int num_barriers = 0;  // that were passed
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
};

Cluster& cluster() {
  static Cluster the_cluster;
  return the_cluster;
}

Block& block() { return *cluster().blocks[cluster().current]; }

void make_ready(Block& b, int index) {
  b.threads[index].state = State::kReady;
  b.warps[index / 32].ready |= 1u << index % 32;
}

/// A thread arrived at the cluster's barrier, or ended before: the last one opens it.
void count_arrival() {
  Cluster& c = cluster();
  if (--c.num_awaited > 0) return;
  ++c.num_barriers;
  for (int i = 0; i < c.size; ++i) {
    Block& b = *c.blocks[i];
    for (int t = 0; t < b.num_threads; ++t) {
      Thread& thread = b.threads[t];
      if (thread.state == State::kDone) continue;
      thread.has_arrived = false;
      ++c.num_awaited;
      if (thread.state == State::kAtClusterBarrier) make_ready(b, t);
    }
  }
}

void run_thread() {
  try {
    (*cluster().kernel)();
    const Groups<PendingProduct>& products = block().threads[block().current].products;
    if (products.first < products.items.size()) fail_in_kernel("a thread ends before its products");
  } catch (...) {
    Fiber::end_throw();
    if (!cluster().error) cluster().error = std::current_exception();
  }
  Block& b = block();
  Thread& thread = b.threads[b.current];
  thread.state = State::kDone;
  ++b.num_done;
  if (!thread.has_arrived) count_arrival();
}

void resume(int index) {
  Block& b = block();
  b.current = index;
  threadIdx = b.threads[index].index;
  b.warps[index / 32].ready &= ~(1u << index % 32);
  b.threads[index].fiber->resume();
}

std::string place() {
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  return " [block " + triple(blockIdx) + ", thread " + triple(threadIdx) + "]";
}

[[noreturn]] void report_stuck() {
  Block& b = block();
  int in_collectives = 0, at_cluster_barrier = 0, example = 0;
  for (int i = 0; i < b.num_threads; ++i) {
    if (b.threads[i].state == State::kInCollective) ++in_collectives, example = i;
    if (b.threads[i].state == State::kAtClusterBarrier) ++at_cluster_barrier;
    if (b.threads[i].state == State::kAtBarrier && in_collectives == 0) example = i;
  }
  threadIdx = b.threads[example].index;
  std::string message = "no thread of the block can go on: of " + std::to_string(b.num_threads) + " threads " +
                        std::to_string(b.num_at_barrier) + " wait at __syncthreads, " + std::to_string(in_collectives) +
                        " in a collective of their warp, " + std::to_string(at_cluster_barrier) +
                        " at the barrier of the cluster, " + std::to_string(b.num_done) + " have ended";
  if (in_collectives > 0) {
    const Warp& warp = b.warps[example / 32];
    char masks[80];
    std::snprintf(masks, sizeof(masks), "; one waits for lanes %08x, of which %08x came", warp.masks[example % 32],
                  warp.waiting & warp.masks[example % 32]);
    message += masks;
  }
  throw std::logic_error(message + place());
}

/// Runs the threads of the current block until none can go on; whether one could.
bool run_block(bool backward) {
  Block& b = block();
  const int num_warps = static_cast<int>(b.warps.size());
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
        if (cluster().error) std::rethrow_exception(cluster().error);
      }
    }
  }
  if (b.num_at_barrier == b.num_threads) {
    b.predicates_of_last = b.num_predicates;
    b.num_at_barrier = b.num_predicates = 0;
    for (int i = 0; i < b.num_threads; ++i) make_ready(b, i);
    return true;
  }
  return progress;
}

/// Runs the blocks of the cluster to their ends, in turns, backward if asked.
void run_cluster(bool backward) {
  Cluster& c = cluster();
  for (int num_left = c.size; num_left > 0;) {
    bool progress = false;
    num_left = 0;
    for (int i = 0; i < c.size; ++i) {
      c.current = backward ? c.size - 1 - i : i;
      blockIdx = block().index;
      while (run_block(backward)) progress = true;
      num_left += block().num_done < block().num_threads;
    }
    if (progress) continue;
    while (num_left > 0 && block().num_done == block().num_threads) c.current = (c.current + 1) % c.size;
    if (num_left > 0) report_stuck();
  }
  for (int i = 0; i < c.size; ++i) {
    const std::vector<Warp>& warps = c.blocks[i]->warps;
    for (size_t w = 0; w < warps.size(); ++w) {
      if (warps[w].num_products != warps[w / 4 * 4].num_products) {
        throw std::logic_error("the warps of a warpgroup multiply different numbers of times" + place());
      }
    }
  }
}

/// Sets out block `number` of the grid as block `rank` of the cluster.
void begin_block(int rank, uint64_t number, dim3 grid, dim3 size, size_t shared_bytes) {
  Cluster& c = cluster();
  while (static_cast<int>(c.blocks.size()) <= rank) c.blocks.push_back(std::make_unique<Block>());
  Block& b = *c.blocks[rank];
  b.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
             static_cast<unsigned>(number / grid.x / grid.y)};
  b.num_threads = static_cast<int>(size.x * size.y * size.z);
  while (static_cast<int>(b.threads.size()) < b.num_threads) {
    b.threads.push_back({{}, State::kDone, std::make_unique<Fiber>(run_thread), {}, {}});
  }
  b.warps.resize((b.num_threads + 31) / 32);
  // Exactly so large that the address sanitizer sees what lies beyond; its own alignment is 16, the device's 1024.
  void* shared = nullptr;
  if (shared_bytes > 0 && posix_memalign(&shared, 1024, shared_bytes) != 0) throw std::bad_alloc();
  if (shared_bytes > 0) std::memset(shared, 0xFF, shared_bytes);
  b.shared_owner.reset(shared);
  b.shared = static_cast<char*>(shared);
  b.shared_bytes = shared_bytes;
  b.num_at_barrier = b.num_done = b.num_predicates = 0;
  for (Warp& warp : b.warps) warp.ready = warp.waiting = 0, warp.num_products = 0;
  for (int t = 0; t < b.num_threads; ++t) {
    const unsigned u = static_cast<unsigned>(t);
    Thread& thread = b.threads[t];
    thread.index = {u % size.x, u / size.x % size.y, u / size.x / size.y};
    thread.reset();
    make_ready(b, t);
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
    if (other != lane && (mask >> other & 1) != 0) make_ready(b, b.current / 32 * 32 + other);
  }
}

int lane_index() { return block().current % 32; }

void* shared_memory() { return block().shared; }

void fail_in_kernel(const char* what) {
  Fiber::begin_throw();
  throw std::logic_error(what + place());
}

int cluster_rank() { return cluster().current; }

void cluster_arrive() {
  Thread& thread = block().threads[block().current];
  if (thread.has_arrived) fail_in_kernel("a thread arrives twice at one barrier of the cluster");
  thread.has_arrived = true;
  ++thread.num_arrivals;
  count_arrival();
}

void cluster_wait() {
  Block& b = block();
  Thread& thread = b.threads[b.current];
  if (cluster().num_barriers >= thread.num_arrivals) return;
  thread.state = State::kAtClusterBarrier;
  Fiber::pause();
}

void cluster_store(void* shared, int rank, uint32_t value) {
  Cluster& c = cluster();
  if (rank < 0 || rank >= c.size) fail_in_kernel("there is no such block in the cluster");
  Block& b = *c.blocks[rank];
  if (c.num_barriers == 0) fail_in_kernel("a block writes to another before a barrier tells that it runs");
  if (b.num_done == b.num_threads) fail_in_kernel("a block writes to another that has ended");
  char* const to = b.shared + (static_cast<char*>(shared) - block().shared);
  if (reinterpret_cast<uintptr_t>(to) % 4 != 0 || !may_access(to, 4)) {
    fail_in_kernel("cluster_store writes to memory that is not the kernel's");
  }
  std::memcpy(to, &value, 4);
}

void run_blocks(dim3 grid, dim3 block_size, size_t shared_bytes, const std::function<void()>& kernel,
                int cluster_size) {
  static std::mutex mutex;  // engines of several threads take turns: the names of device code are global
  const std::lock_guard<std::mutex> lock(mutex);
  static uint64_t num_launches = 0;
  const uint64_t launch = num_launches++;
  Cluster& c = cluster();
  c.size = cluster_size;
  c.kernel = &kernel;
  c.error = nullptr;
  blockDim = block_size;
  gridDim = grid;
  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z, size = static_cast<uint64_t>(cluster_size);
  const uint64_t num_clusters = num_blocks / size;
  for (uint64_t i = 0; i < num_clusters; ++i) {
    const uint64_t number = launch % 2 == 0 ? i : num_clusters - 1 - i;
    for (uint64_t rank = 0; rank < size; ++rank) {
      begin_block(static_cast<int>(rank), number * size + rank, grid, block_size, shared_bytes);
    }
    c.num_awaited = cluster_size * static_cast<int>(block_size.x * block_size.y * block_size.z);
    c.num_barriers = 0;
    try {
      run_cluster((launch + i) % 2 != 0);
    } catch (...) {
      for (uint64_t rank = 0; rank < size; ++rank) {
        for (Thread& thread : c.blocks[rank]->threads) thread.fiber->abandon();
      }
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

/// sums += a·b; in each column in the order of k, and several columns at once.
template <int kWidth>
void add_row_product(const float (&a)[16], const float (&b)[16][kWidth], float* sums, int columns) {
  for (int column = 0; column < columns; column += 8) {
    float parts[8];
    std::memcpy(parts, sums + column, sizeof(parts));
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 8; ++i) parts[i] += a[k] * b[k][column + i];
    }
    std::memcpy(sums + column, parts, sizeof(parts));
  }
}

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
  float sums[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const float* d = static_cast<Mma*>(lanes.record[lane])->d;
    for (int i = 0; i < 4; ++i) sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2] = d[i];
  }
  for (int row = 0; row < 16; ++row) add_row_product<8>(a[row], b, sums[row], 8);
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<Mma*>(lanes.record[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] = sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
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
  block().threads[block().current].copies.items.push_back({shared, valid ? global : nullptr});
  std::memset(shared, 0xFF, 16);
}

void cp_async_commit() { block().threads[block().current].copies.close(); }

void finish_copies(int groups_left) {
  Thread& thread = block().threads[block().current];
  Groups<AsyncCopy>& copies = thread.copies;
  while (static_cast<int>(copies.ends.size()) > groups_left) {
    thread.has_copied = thread.has_copied || copies.ends.front() > copies.first;
    for (size_t i = copies.first; i < copies.ends.front(); ++i) {
      const AsyncCopy& copy = copies.items[i];
      if (copy.global == nullptr) {
        std::memset(copy.shared, 0, 16);
      } else {
        std::memcpy(copy.shared, copy.global, 16);
      }
    }
    copies.remove_first();
  }
}

// ---- Products of a warpgroup.

namespace {

/// The bf16 at a byte of a matrix with swizzled rows of 128 bytes.
float matrix_element(uint64_t matrix, uint64_t byte) {
  const uint64_t start = (matrix & 0x3FFF) << 4;
  if (matrix >> 62 != 1 || (matrix >> 49 & 7) != 0) fail_in_kernel("a matrix must have rows of 128 swizzled bytes");
  if (start % 1024 >= 128) fail_in_kernel("a matrix must begin in the first of eight rows, at an address of whole KiB");
  uint64_t address = start + byte;
  address ^= (address >> 7 & 7) << 4;
  const Block& b = block();
  if (address + 2 > b.shared_bytes) fail_in_kernel("a product reads beyond the shared memory");
  uint16_t bits;
  std::memcpy(&bits, b.shared + address, 2);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
uint64_t leading_bytes(uint64_t matrix) { return (matrix >> 16 & 0x3FFF) << 4; }
uint64_t stride_bytes(uint64_t matrix) { return (matrix >> 32 & 0x3FFF) << 4; }

struct Operands {
  float a[16][16], b[16][kMaxColumns];
  uint64_t hash = 0;
};

/// What the warp of `warp` reads in shared memory; a only where it is there.
void read_operands(const Product& product, int warp, Operands& out) {
  const auto read = [&](uint64_t matrix, uint64_t byte) {
    const float x = matrix_element(matrix, byte);
    out.hash = (out.hash ^ __float_as_uint(x)) * 0x100000001B3u;
    return x;
  };
  const auto row_byte = [](uint64_t matrix, int row) {
    return static_cast<uint64_t>(row / 8) * stride_bytes(matrix) + static_cast<uint64_t>(row % 8 * 128);
  };
  for (int j = 0; j < product.columns; ++j) {
    for (int k = 0; k < 16; ++k) {
      const uint64_t b = product.b_matrix;
      out.b[k][j] = read(b, product.transposed ? row_byte(b, k) + static_cast<uint64_t>(j / 64) * leading_bytes(b) +
                                                     static_cast<uint64_t>(j % 64 * 2)
                                               : row_byte(b, j) + static_cast<uint64_t>(k * 2));
    }
  }
  if (product.a != nullptr) return;
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      out.a[i][k] =
          read(product.a_matrix, row_byte(product.a_matrix, warp % 4 * 16 + i) + static_cast<uint64_t>(k * 2));
    }
  }
}

void finish_product(WarpLanes& lanes) {
  Block& b = block();
  const int warp = b.current / 32;
  ++b.warps[warp].num_products;
  const Product& first = *static_cast<Product*>(lanes.record[0]);
  for (int t = 0; t < b.num_threads; ++t) {
    if (b.threads[t].has_copied) fail_in_kernel("shared memory was copied, and no fence made it visible to products");
  }
  static Operands operands;
  operands.hash = 0;
  read_operands(first, warp, operands);
  for (int lane = 0; lane < 32; ++lane) {
    const Product& product = *static_cast<Product*>(lanes.record[lane]);
    if (product.b_matrix != first.b_matrix || product.a_matrix != first.a_matrix || product.adds != first.adds ||
        product.columns != first.columns) {
      fail_in_kernel("the lanes of a warp multiply different matrices");
    }
    if (product.a == nullptr) continue;
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) operands.a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = half_of(product.a[i], half);
    }
  }
  static float sums[16][kMaxColumns];
  const int count = first.columns / 2;
  const auto place_of = [](int lane, int i) -> float& {
    return sums[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + 2 * (lane % 4) + i % 2];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const Product& product = *static_cast<Product*>(lanes.record[lane]);
    const Thread& thread = b.threads[warp * 32 + lane];
    if (!thread.has_fenced) fail_in_kernel("a product needs wgmma_fence() after a wait");
    const float* before = product.sums;
    for (size_t i = thread.products.first; i < thread.products.items.size(); ++i) {
      const PendingProduct& other = thread.products.items[i];
      if (other.sums == product.sums) before = other.result;
    }
    for (int i = 0; i < count; ++i) place_of(lane, i) = product.adds ? before[i] : 0;
  }
  for (int row = 0; row < 16; ++row) add_row_product(operands.a[row], operands.b, sums[row], first.columns);
  for (int lane = 0; lane < 32; ++lane) {
    std::vector<PendingProduct>& items = b.threads[warp * 32 + lane].products.items;
    items.emplace_back();
    PendingProduct& product = items.back();
    static_cast<Product&>(product) = *static_cast<Product*>(lanes.record[lane]);
    for (int i = 0; i < count; ++i) product.result[i] = place_of(lane, i);
    if (product.a != nullptr) std::memcpy(product.a_then, product.a, sizeof(product.a_then));
    product.operands_then = operands.hash;
    std::memset(product.sums, 0xFF, count * sizeof(float));
  }
}

/// Gives a lane the sums of its product i, which is in its oldest group.
void deliver(const Thread& thread, size_t i) {
  const std::vector<PendingProduct>& items = thread.products.items;
  const PendingProduct& product = items[i];
  if (product.a != nullptr && std::memcmp(product.a_then, product.a, sizeof(product.a_then)) != 0) {
    fail_in_kernel("the left operand of a product under way was changed");
  }
  if (block().current % 32 == 0) {
    static Operands operands;
    operands.hash = 0;
    read_operands(product, block().current / 32, operands);
    if (operands.hash != product.operands_then) fail_in_kernel("shared memory changed under a product");
  }
  for (size_t j = i + 1; j < items.size(); ++j) {
    if (items[j].sums == product.sums) return;  // a later one goes on with these sums
  }
  for (int j = 0; j < product.columns / 2; ++j) {
    if (__float_as_uint(product.sums[j]) != 0xFFFFFFFFu) fail_in_kernel("sums of a product under way were written");
    product.sums[j] = product.result[j];
  }
}

}  // namespace

uint32_t shared_offset(const void* pointer) {
  const auto offset = static_cast<const char*>(pointer) - block().shared;
  if (offset < 0 || static_cast<size_t>(offset) >= block().shared_bytes || offset % 16 != 0) {
    fail_in_kernel("a matrix must be in shared memory, at an address of 16 bytes");
  }
  return static_cast<uint32_t>(offset);
}

void wgmma(float* sums, int columns, const uint32_t* a, uint64_t a_matrix, uint64_t b_matrix, bool transposed,
           bool adds) {
  if (columns > kMaxColumns) fail_in_kernel("a product has at most 256 columns");
  Product product{sums, columns, a, a_matrix, b_matrix, transposed, adds};
  wait_for_warp(0xFFFFFFFFu, &product, finish_product);
}

void wgmma_fence() { block().threads[block().current].has_fenced = true; }

void wgmma_commit() { block().threads[block().current].products.close(); }

void finish_products(int groups_left) {
  Thread& thread = block().threads[block().current];
  thread.has_fenced = false;
  while (static_cast<int>(thread.products.ends.size()) > groups_left) {
    Groups<PendingProduct>& products = thread.products;
    for (size_t i = products.first; i < products.ends.front(); ++i) deliver(thread, i);
    products.remove_first();
  }
}

void fence_async_proxy() { block().threads[block().current].has_copied = false; }

}  // namespace limbeck::cuda::emulator
