// The words of device_code.h: that a device understands them as kernels mean them, and the emulator likewise.
#include <cmath>
#include <stdexcept>

#include "cuda/attention_tiles.h"
#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

__global__ void write_indices(int* out) {
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const int block = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  out[block * threads + thread] = block * threads + thread;
}

__global__ void sum_block(const float* x, float* sums, int count) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += x[blockIdx.x * count + i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += partial[w];
    sums[blockIdx.x] = total;
  }
}

__global__ void rotate_through_shared_memory(const int* x, int* y, int rounds) {
  LIMBECK_SHARED_MEMORY(int, shared);
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  int value = x[thread];
  for (int i = 0; i < rounds; ++i) {
    shared[thread] = value;
    __syncthreads();
    value = shared[(thread + 1) % count];
    __syncthreads();
  }
  y[thread] = value;
}

/// Each block of a cluster gives each later one a number a thread, twice; the first leaves after the first time.
///   sums [gridDim.x, blockDim.x] = of all that came
__global__ void send_through_cluster(int cluster_size, int* sums) {
  LIMBECK_SHARED_MEMORY(uint32_t, shared);  // [2, cluster_size, blockDim.x]
  const int rank = cluster_rank(), thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  for (int i = thread; i < 2 * cluster_size * count; i += count) shared[i] = 0;
  cluster_arrive();
  int* const sum = sums + blockIdx.x * blockDim.x + threadIdx.x;
  *sum = 0;
  for (int round = 0; round < 2; ++round) {
    uint32_t* const received = shared + round * cluster_size * count;
    cluster_wait();  // the others' memory is theirs, and set out
    for (int to = rank + 1; to < cluster_size; ++to) {
      cluster_store(received + rank * count + thread, to,
                    static_cast<uint32_t>((round + 1) * 1000 * (rank + 1) + thread + static_cast<int>(blockIdx.x)));
    }
    cluster_arrive();
    cluster_wait();
    for (int from = 0; from < cluster_size; ++from) {
      *sum += static_cast<int>(received[from * count + (thread + 1) % count]);
    }
    if (rank == 0) return;
    cluster_arrive();
  }
  cluster_wait();
}

/// Per lane: the results of each collective.
__global__ void use_collectives(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* o = out + lane * 12;
  o[0] = __shfl_sync(kAll, 100 + lane, 5);
  o[1] = __shfl_sync(kAll, 100 + lane, lane + 1, 8);
  o[2] = __shfl_xor_sync(kAll, 100 + lane, 3);
  o[3] = __shfl_down_sync(kAll, 100 + lane, 4);
  o[4] = __shfl_up_sync(kAll, 100 + lane, 4u, 16);
  o[5] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  o[6] = __any_sync(kAll, lane == 31);
  o[7] = __all_sync(kAll, lane < 31);
  if (lane < 16) {  // half a warp on its own
    o[8] = __shfl_xor_sync(0xFFFFu, lane, 1);
  } else {
    o[8] = static_cast<int>(__ballot_sync(0xFFFF0000u, lane % 2));
  }
  __syncwarp();
  o[9] = __syncthreads_count(lane < 7);
  o[10] = __syncthreads_or(lane == 40);
  o[11] = __syncthreads_and(lane < 32);
}

/// One product of [16, 16] and [16, 8] by tensor cores, operands by way of ldmatrix.
///   a [16, 16], b [16, 8] row-major, b_columns [8, 16] = its transpose
__global__ void multiply_fragments(const bf16* a, const bf16* b, const bf16* b_columns, float* d, float* d_again) {
  __shared__ __align__(16) bf16 shared_a[16 * 16], shared_b[16 * 8], shared_columns[8 * 16];
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(shared_a + lane * 8, a + lane * 8, true);
  cp_async_commit();
  cp_async_16(shared_b + lane % 16 * 8, b + lane % 16 * 8, true);
  cp_async_16(shared_columns + lane % 16 * 8, b_columns + lane % 16 * 8, true);
  cp_async_commit();
  cp_async_wait<1>();
  __syncwarp();
  uint32_t fragment[4], columns[2], rows[2];
  ldmatrix_x4(fragment, shared_a + lane % 16 * 16 + lane / 16 * 8);
  cp_async_wait<0>();
  __syncwarp();
  ldmatrix_x2(columns, shared_columns + lane % 8 * 16 + lane / 8 % 2 * 8);
  ldmatrix_x2_trans(rows, shared_b + lane % 16 * 8);
  float sums[4] = {1, 1, 1, 1}, again[4] = {1, 1, 1, 1};
  mma_m16n8k16(sums, fragment, columns);
  mma_m16n8k16(again, fragment, rows);
  for (int i = 0; i < 4; ++i) {
    const int at = (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
    d[at] = sums[i];
    d_again[at] = again[i];
  }
}

/// Products of a [64, 64] with [64, N], by each way to hand in the operands: d [4, 64, N].
///   a [64, 64], b [64, N] row-major, b_columns [N, 64] = its transpose
template <int N>
__global__ void multiply_matrices(const bf16* a, const bf16* b, const bf16* b_columns, float* d) {
#ifdef LIMBECK_HAS_WGMMA
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  bf16 *const shared_a = shared, *const shared_b = shared + 64 * 64, *const shared_columns = shared_b + 64 * N;
  const auto place = [](bf16* panel, int row, int chunk) { return panel + row * 64 + (chunk ^ row % 8) * 8; };
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 8; i += static_cast<int>(blockDim.x)) {
    cp_async_16(place(shared_a, i / 8, i % 8), a + i * 8, true);
  }
  for (int i = static_cast<int>(threadIdx.x); i < 8 * N; i += static_cast<int>(blockDim.x)) {
    const int row = i / (N / 8), chunk = i % (N / 8);  // of b, in panels of 64 columns
    cp_async_16(place(shared_b + chunk / 8 * 64 * 64, row, chunk % 8), b + i * 8, true);
    cp_async_16(place(shared_columns, i / 8, i % 8), b_columns + i * 8, true);
  }
  cp_async_commit();
  cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t left[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ldmatrix_x4(left[k], place(shared_a, warp * 16 + lane % 16, 2 * k + lane / 16));
  }
  const uint64_t a_matrix = describe_matrix(shared_a, 16), rows = describe_matrix(shared_b, 64 * 128),
                 columns = describe_matrix(shared_columns, 16);
  float one[N / 8][4], two[N / 8][4];
  const auto store = [&](const float(&sums)[N / 8][4], int way) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      d[(way * 64 + row) * N + column] = sums[i / 4][i % 4];
    }
  };
#pragma unroll
  for (int i = 0; i < N / 2; ++i) one[i / 4][i % 4] = two[i / 4][i % 4] = 1;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma<false>(one, left[k], later_matrix(columns, 32 * k), true);
  wgmma_commit();
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma<true>(two, left[k], later_matrix(rows, 2048 * k), true);
  wgmma_commit();
  wgmma_wait<1>(one);
  store(one, 0);
  wgmma_wait<0>(two);
  store(two, 1);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    wgmma<false>(one, later_matrix(a_matrix, 32 * k), later_matrix(columns, 32 * k), k > 0);
    wgmma<true>(two, later_matrix(a_matrix, 32 * k), later_matrix(rows, 2048 * k), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>(one);
  wgmma_wait<0>(two);
  store(one, 2);
  store(two, 3);
#endif
}

__global__ void transpose_fragments(const bf16* x, uint32_t* out) {
  __shared__ __align__(16) bf16 shared[32 * 8];
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(shared + lane * 8, x + lane * 8, lane != 9);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4], t[4];
  ldmatrix_x4(r, shared + lane * 8);
  ldmatrix_x4_trans(t, shared + lane * 8);
  for (int i = 0; i < 4; ++i) {
    out[lane * 8 + i] = r[i];
    out[lane * 8 + 4 + i] = t[i];
  }
}

__global__ void use_numbers(const float* x, bf16* rounded, uint32_t* packed, float* unpacked, int count) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  rounded[i] = from_float<bf16>(x[i]);
  packed[i] = pack_bf16(x[i], -x[i]);
  unpacked[2 * i] = unpack_bf16(packed[i]).x;
  unpacked[2 * i + 1] = unpack_bf16(packed[i]).y;
}

__global__ void count_atomically(unsigned long long* sum, int* largest) {
  atomicAdd(sum, static_cast<unsigned long long>(threadIdx.x));
  atomicMax(largest, static_cast<int>(threadIdx.x * 7 % 64));
}

}  // namespace

TEST("device code: every thread of every block runs once and knows where it is") {
  TestDevice device;
  DeviceArray<int> out(3 * 2 * 2 * 4 * 3 * 5);
  launch(device.context, write_indices, dim3(3, 2, 2), dim3(4, 3, 5), 0, out.data());
  const std::vector<int> indices = out.get();
  for (size_t i = 0; i < indices.size(); ++i) CHECK(indices[i] == static_cast<int>(i));
  launch(device.context, write_indices, dim3(3, 0, 2), dim3(4, 3, 5), 0, out.data());  // nothing
}

TEST("device code: a block sums with shuffles, a barrier and shared memory") {
  TestDevice device;
  const std::vector<float> x = random_floats(5 * 100, 1);
  DeviceArray<float> in(x), sums(5);
  launch(device.context, sum_block, 5, 64, 0, in.data(), sums.data(), 100);
  const std::vector<float> out = sums.get();
  for (int block = 0; block < 5; ++block) {
    double expected = 0;
    for (int i = 0; i < 100; ++i) expected += x[block * 100 + i];
    CHECK(std::fabs(out[block] - expected) < 1e-4);
  }
}

TEST("device code: dynamic shared memory, more than 48 KiB too") {
  TestDevice device;
  std::vector<int> x(1000);
  for (int i = 0; i < 1000; ++i) x[i] = i * i;
  DeviceArray<int> in(x), out(1000);
  for (size_t shared_bytes : {size_t{4000}, size_t{90000}}) {
    launch(device.context, rotate_through_shared_memory, 1, 1000, shared_bytes, in.data(), out.data(), 3);
    const std::vector<int> y = out.get();
    for (int i = 0; i < 1000; ++i) CHECK(y[i] == x[(i + 3) % 1000]);
  }
}

TEST("device code: blocks of a cluster write to each other's shared memory") {
  TestDevice device;
  for (const int size : {1, 2, 4, 8}) {
    const int threads = 96, blocks = 2 * size;
    DeviceArray<int> sums(blocks * threads);
    launch_clusters(device.context, send_through_cluster, size, dim3(blocks), dim3(threads),
                    static_cast<size_t>(2 * size * threads * 4), size, sums.data());
    const std::vector<int> out = sums.get();
    for (int block = 0; block < blocks; ++block) {
      for (int thread = 0; thread < threads; ++thread) {
        int expected = 0;
        for (int from = 0; from < block % size; ++from) {
          const int own = (thread + 1) % threads + block / size * size + from;
          expected += 1000 * (from + 1) + own;
          if (from > 0) expected += 2000 * (from + 1) + own;
        }
        CHECK(out[static_cast<size_t>(block * threads + thread)] == expected);
      }
    }
  }
}

TEST("device code: collectives of a warp and of a block") {
  TestDevice device;
  DeviceArray<int> out(64 * 12);
  launch(device.context, use_collectives, 1, 32, 0, out.data());
  const std::vector<int> all = out.get();
  for (int lane = 0; lane < 32; ++lane) {
    const int* o = all.data() + lane * 12;
    CHECK(o[0] == 105);
    CHECK(o[1] == 100 + lane / 8 * 8 + (lane + 1) % 8);
    CHECK(o[2] == 100 + (lane ^ 3));
    CHECK(o[3] == 100 + (lane + 4 < 32 ? lane + 4 : lane));
    CHECK(o[4] == 100 + (lane % 16 >= 4 ? lane - 4 : lane));
    CHECK(o[5] == 0x49249249);
    CHECK(o[6] != 0 && o[7] == 0);
    CHECK(o[8] == (lane < 16 ? lane ^ 1 : static_cast<int>(0xAAAA0000u)));
    CHECK(o[9] == 7 && o[10] == 0 && o[11] != 0);
  }
}

TEST("device code: tensor cores multiply what ldmatrix and cp.async brought") {
  TestDevice device;
  const std::vector<float> a = rounded<bf16>(random_floats(256, 1)), b = rounded<bf16>(random_floats(128, 2));
  std::vector<float> b_columns(128);
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < 8; ++j) b_columns[j * 16 + k] = b[k * 8 + j];
  }
  DeviceArray<bf16> in_a(converted<bf16>(a)), in_b(converted<bf16>(b)), in_columns(converted<bf16>(b_columns));
  DeviceArray<float> d(128), d_again(128);
  launch(device.context, multiply_fragments, 1, 32, 0, in_a.data(), in_b.data(), in_columns.data(), d.data(),
         d_again.data());
  const std::vector<float> out = d.get();
  CHECK(same_bits(out, d_again.get()));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double expected = 1;
      for (int k = 0; k < 16; ++k) expected += double{a[i * 16 + k]} * b[k * 8 + j];
      CHECK(std::fabs(out[i * 8 + j] - expected) < 1e-5 * (1 + std::fabs(expected)));
    }
  }
}

template <int N>
void check_matrices() {
  TestDevice device;
  const std::vector<float> a = rounded<bf16>(random_floats(64 * 64, 1)), b = rounded<bf16>(random_floats(64 * N, 2));
  std::vector<float> b_columns(64 * N);
  for (int k = 0; k < 64; ++k) {
    for (int j = 0; j < N; ++j) b_columns[j * 64 + k] = b[k * N + j];
  }
  DeviceArray<bf16> in_a(converted<bf16>(a)), in_b(converted<bf16>(b)), in_columns(converted<bf16>(b_columns));
  DeviceArray<float> d(4 * 64 * N);
  launch(device.context, multiply_matrices<N>, 1, 128, (64 * 64 + 2 * 64 * N) * sizeof(bf16), in_a.data(), in_b.data(),
         in_columns.data(), d.data());
  const std::vector<float> out = d.get();
  for (int way = 0; way < 4; ++way) {
    for (int i = 0; i < 64; ++i) {
      for (int j = 0; j < N; ++j) {
        double expected = way < 2 ? 1 : 0;
        for (int k = 0; k < 64; ++k) expected += double{a[i * 64 + k]} * b[k * N + j];
        CHECK(std::fabs(out[(way * 64 + i) * N + j] - expected) < 1e-4);
      }
    }
  }
}

TEST("device code: a warpgroup multiplies registers and swizzled matrices, either way round") {
  if (!has_warpgroup_products()) return;
  check_matrices<64>();
  check_matrices<128>();
}

TEST("device code: ldmatrix gives rows and columns, cp.async zeros for what is not valid") {
  TestDevice device;
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i) x[i] = static_cast<float>(i);  // exact in bf16
  DeviceArray<bf16> in(converted<bf16>(x));
  DeviceArray<uint32_t> out(256);
  launch(device.context, transpose_fragments, 1, 32, 0, in.data(), out.data());
  const std::vector<uint32_t> r = out.get();
  const auto bits = [&](int row, int column) -> uint32_t {
    bf16 value = from_float<bf16>(row == 9 ? 0 : x[row * 8 + column]);
    uint16_t out;
    std::memcpy(&out, &value, 2);
    return out;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int row = lane / 4, column = lane % 4 * 2, top = matrix * 8;
      CHECK(r[lane * 8 + matrix] == (bits(top + row, column) | bits(top + row, column + 1) << 16));
      CHECK(r[lane * 8 + 4 + matrix] == (bits(top + column, row) | bits(top + column + 1, row) << 16));
    }
  }
}

TEST("device code: bf16 is rounded to the nearest, ties to even") {
  TestDevice device;
  const std::vector<float> x{1,        1 + 0x1p-8f, 1 + 0x1.8p-7f, 1 + 0x1.01p-8f, 3.14159f, -2.5e-39f, 3.4e38f,
                             INFINITY, NAN};
  const std::vector<float> expected{1,        1,        1 + 0x1p-6f, 1 + 0x1p-7f, 3.140625f, rounded<bf16>(-2.5e-39f),
                                    INFINITY, INFINITY, NAN};
  const int count = static_cast<int>(x.size());
  DeviceArray<float> in(x), unpacked(2 * count);
  DeviceArray<bf16> out(count);
  DeviceArray<uint32_t> packed(count);
  launch(device.context, use_numbers, 1, 32, 0, in.data(), out.data(), packed.data(), unpacked.data(), count);
  const std::vector<float> y = out.floats(), pairs = unpacked.get();
  for (int i = 0; i < count; ++i) {
    const auto is = [&](float value, float wanted) {
      return value == wanted || (std::isnan(value) && std::isnan(wanted));
    };
    CHECK(is(y[i], expected[i]) && is(rounded<bf16>(x[i]), expected[i]));
    CHECK(is(pairs[2 * i], expected[i]) && is(pairs[2 * i + 1], -expected[i]));
  }
}

TEST("device code: atomic operations of integers") {
  TestDevice device;
  DeviceArray<unsigned long long> sum(1, 0);
  DeviceArray<int> largest(1, 0);
  launch(device.context, count_atomically, 10, 64, 0, sum.data(), largest.data());
  CHECK(sum.get()[0] == 10 * 2016 && largest.get()[0] == 63);
}

TEST("device code: a launch that cannot be is an error, and the next one works") {
  TestDevice device;
  DeviceArray<int> out(4096);
  CHECK_ERROR("ERR_CUDA", launch(device.context, write_indices, 1, 2048, 0, out.data()));
  CHECK_ERROR("ERR_CUDA", launch(device.context, write_indices, 1, 32, 1 << 20, out.data()));
  launch(device.context, write_indices, 1, 1, 0, out.data());
  CHECK(out.get()[0] == 0);
}

#ifdef LIMBECK_CUDA_EMULATED

#include "cuda/emulator/sanitizer.h"

namespace {

void forget_barrier(int* out) {
  LIMBECK_SHARED_MEMORY(int, shared);
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];
}
void leave_early() {
  if (threadIdx.x < 3) return;
  __syncthreads();
}
void diverge_in_warp() {
  if (threadIdx.x == 7) {
    __syncthreads();
  } else {
    __shfl_sync(kAll, 1, 0);
  }
}
void meet_in_different_collectives() {
  if (threadIdx.x % 2 == 0) {
    __shfl_sync(kAll, 1, 0);
  } else {
    __ballot_sync(kAll, 1);
  }
}
void read_outside_of_mask() {
  if (threadIdx.x < 16) __shfl_xor_sync(0xFFFFu, 1, 16);
}
void store_before_barrier() { cluster_store(limbeck::cuda::emulator::shared_memory(), 1 - cluster_rank(), 1); }
void store_where_all_ended() {
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 0) return;
  cluster_arrive();
  cluster_wait();
  cluster_store(limbeck::cuda::emulator::shared_memory(), 0, 1);
}
void wait_at_two_barriers() {
  if (cluster_rank() == 0) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
    if (threadIdx.x == 0) return;
    __syncthreads();
  }
}
void read_before_copy(const float* x, float* out) {
  __shared__ __align__(16) float shared[4];
  cp_async_16(shared, x, true);
  cp_async_commit();
  out[0] = shared[0];
  cp_async_wait<0>();
  out[1] = shared[0];
}
void read_shared(int* out) {
  LIMBECK_SHARED_MEMORY(int, shared);
  out[blockIdx.x] = shared[0];
  shared[0] = 5;
}

enum Mistake {
  kNone,
  kNoFence,
  kNoProxyFence,
  kNoWait,
  kReadsEarly,
  kWritesSums,
  kWritesLeft,
  kWritesMatrix,
  kOneWarp,
  kWrongSwizzle
};
void multiply_wrongly(const bf16* x, float* out, Mistake mistake) {
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  for (int i = static_cast<int>(threadIdx.x); i < 512; i += 128) cp_async_16(shared + i * 8, x + i * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (mistake != kNoProxyFence) fence_async_proxy();
  __syncthreads();
  if (mistake == kOneWarp && threadIdx.x >= 32) return;
  const uint64_t b = describe_matrix(shared, 16);
  uint32_t left[4] = {};
  float sums[8][4];
  if (mistake != kNoFence) wgmma_fence();
  wgmma<false>(sums, left, mistake == kWrongSwizzle ? b ^ uint64_t{1} << 63 : b, false);
  wgmma_commit();
  if (mistake == kNoWait) return;
  if (mistake == kReadsEarly) out[threadIdx.x] = sums[0][0];
  if (mistake == kWritesSums) sums[0][0] = 1;
  if (mistake == kWritesLeft) left[0] = 1;
  if (mistake == kWritesMatrix && threadIdx.x == 0) shared[5].bits ^= 1;
  wgmma_wait<0>(sums);
  if (mistake != kReadsEarly) out[threadIdx.x] = sums[0][0];
}

/// What a kernel's std::logic_error says, empty without one.
std::string complaint(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST("emulator: mistakes of kernels are reported, and the next launch works") {
  TestDevice device;
  Context& c = device.context;
  for (int repeat = 0; repeat < 2; ++repeat) {
    CHECK(has(complaint([&] { launch(c, leave_early, 1, 64, 0); }), "61 wait at __syncthreads"));
    CHECK(has(complaint([&] { launch(c, leave_early, 1, 64, 0); }), "3 have ended"));
    CHECK(has(complaint([&] { launch(c, diverge_in_warp, 1, 32, 0); }), "waits for lanes ffffffff, of which ffffff7f"));
    CHECK(has(complaint([&] { launch(c, meet_in_different_collectives, 1, 32, 0); }), "different collectives"));
    CHECK(has(complaint([&] { launch(c, read_outside_of_mask, 1, 32, 0); }), "not in its mask"));
    const auto in_clusters = [&](void (*kernel)()) {
      return complaint([&] { launch_clusters(c, kernel, 2, 2, 32, 16); });
    };
    CHECK(has(in_clusters(store_before_barrier), "before a barrier tells that it runs"));
    CHECK(has(in_clusters(store_where_all_ended), "to another that has ended"));
    CHECK(has(in_clusters(wait_at_two_barriers), "no thread of the block can go on"));
  }
  DeviceArray<int> out(10);
  launch(c, write_indices, 1, 10, 0, out.data());
  CHECK(out.get()[9] == 9);
}

TEST("emulator: mistakes with products of a warpgroup are reported") {
  TestDevice device;
  DeviceArray<bf16> x(converted<bf16>(random_floats(64 * 64, 1)));
  DeviceArray<float> out(128);
  const auto run = [&](Mistake mistake) {
    return complaint([&] { launch(device.context, multiply_wrongly, 1, 128, 8192, x.data(), out.data(), mistake); });
  };
  CHECK(run(kNone).empty() && out.get()[0] == 0);
  CHECK(run(kReadsEarly).empty() && std::isnan(out.get()[0]));
  CHECK(has(run(kNoFence), "needs wgmma_fence()"));
  CHECK(has(run(kNoProxyFence), "no fence made it visible"));
  CHECK(has(run(kNoWait), "ends before its products"));
  CHECK(has(run(kWritesSums), "sums of a product under way were written"));
  CHECK(has(run(kWritesLeft), "left operand of a product under way was changed"));
  CHECK(has(run(kWritesMatrix), "shared memory changed under a product"));
  CHECK(has(run(kOneWarp), "different numbers of times"));
  CHECK(has(run(kWrongSwizzle), "128 swizzled bytes"));
}

TEST("emulator: without a barrier, threads see what was not written yet, from either end") {
  TestDevice device;
  DeviceArray<int> out(64);
  bool saw_first_missing = false, saw_last_missing = false;
  for (int repeat = 0; repeat < 2; ++repeat) {
    launch(device.context, forget_barrier, 1, 64, 256, out.data());
    const std::vector<int> y = out.get();
    saw_first_missing = saw_first_missing || y[0] == -1;
    saw_last_missing = saw_last_missing || y[63] == -1;
  }
  CHECK(saw_first_missing && saw_last_missing);
}

TEST("emulator: a lazy machine does what is waited for, and what that waits for by events") {
  emulator::machine().is_lazy = true;
  for (const bool has_event : {false, true}) {
    cudaStream_t first, second;
    cudaEvent_t event;
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    char byte = 0;
    cudaMemsetAsync(&byte, 1, 1, first);
    cudaEventRecord(event, first);
    if (has_event) cudaStreamWaitEvent(second, event);
    cudaMemsetAsync(&byte, 2, 1, second);
    CHECK(byte == 0);
    cudaStreamSynchronize(second);
    CHECK(byte == 2);
    cudaStreamSynchronize(first);
    CHECK(byte == (has_event ? 2 : 1));
    cudaEventDestroy(event);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
  }
  emulator::machine().reset();
}

TEST("emulator: memory is poison until it is written, shared memory in every block") {
  TestDevice device;
  DeviceArray<float> x(std::vector<float>{1, 2, 3, 4}), out(2);
  launch(device.context, read_before_copy, 1, 1, 0, x.data(), out.data());
  const std::vector<float> read = out.get();
  CHECK(std::isnan(read[0]) && read[1] == 1);
  DeviceArray<int> words(3, 0);
  launch(device.context, read_shared, 3, 1, 4, words.data());
  CHECK(words.get() == std::vector<int>(3, -1));
  DeviceArena arena;
  CHECK(*arena.allocate<uint32_t>(1) == 0xFFFFFFFFu);
}

#ifdef LIMBECK_ADDRESS_SANITIZER

TEST("emulator: memory beyond an allocation, and what was given back, must not be touched") {
  DeviceArena arena;
  const char* kept = arena.allocate<char>(256);
  const char* given_back;
  {
    DeviceArena::Scope scope(arena);
    given_back = arena.allocate<char>(100);
    CHECK(emulator::may_access(given_back, 100) && !emulator::may_access(given_back, 101));
  }
  CHECK(!emulator::may_access(given_back, 1));
  CHECK(emulator::may_access(kept, 256) && !emulator::may_access(kept, 257));
  DeviceArray<char> array(7);
  CHECK(emulator::may_access(array.data(), 7) && !emulator::may_access(array.data(), 8));
}

#endif

#endif
