#pragma once

// Device code on the processor: the names of CUDA C++ that our kernels use, defined so that a block runs as fibers, one
// for each thread, in turns. A fiber runs until it meets a barrier or a collective of its warp; what a kernel forgets
// to wait for has then not happened yet, and what it may not read is poison. See blocks.h for how.

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emulator/blocks.h"

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// ---- Vector types, with the alignment that 8- and 16-byte accesses need.

#define LIMBECK_VECTOR_TYPES(T, name)                                                \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
LIMBECK_VECTOR_TYPES(float, float)
LIMBECK_VECTOR_TYPES(int, int)
LIMBECK_VECTOR_TYPES(unsigned, uint)
LIMBECK_VECTOR_TYPES(unsigned short, ushort)
#undef LIMBECK_VECTOR_TYPES
struct alignas(16) double2 {
  double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- Where this thread is.

using limbeck::cuda::emulator::blockDim;
using limbeck::cuda::emulator::blockIdx;
using limbeck::cuda::emulator::gridDim;
using limbeck::cuda::emulator::threadIdx;
constexpr int warpSize = 32;

// ---- Barriers and collectives.

inline void __syncthreads() { limbeck::cuda::emulator::wait_for_block(0); }
inline int __syncthreads_count(int predicate) { return limbeck::cuda::emulator::wait_for_block(predicate != 0); }
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace limbeck::cuda::emulator {

template <typename T>
struct Shuffle {
  T value;
  int source;
  T result;
};

/// Runs once, when the last lane of the mask has come.
template <typename T>
void finish_shuffle(WarpLanes& lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!lanes.takes_part(lane)) continue;
    auto* shuffle = static_cast<Shuffle<T>*>(lanes.record[lane]);
    if (!lanes.takes_part(shuffle->source)) fail_in_kernel("a shuffle reads a lane that is not in its mask");
    shuffle->result = static_cast<Shuffle<T>*>(lanes.record[shuffle->source])->value;
  }
}

template <typename T>
T shuffle_from(unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "CUDA shuffles 4- and 8-byte numbers");
  Shuffle<T> shuffle{value, source, T()};
  wait_for_warp(mask, &shuffle, finish_shuffle<T>);
  return shuffle.result;
}

inline void finish_sync(WarpLanes&) {}

struct Vote {
  bool predicate;
  unsigned ballot;
};
inline void finish_vote(WarpLanes& lanes) {
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes.takes_part(lane) && static_cast<Vote*>(lanes.record[lane])->predicate) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes.takes_part(lane)) static_cast<Vote*>(lanes.record[lane])->ballot = ballot;
  }
}

}  // namespace limbeck::cuda::emulator

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  char none;
  limbeck::cuda::emulator::wait_for_warp(mask, &none, limbeck::cuda::emulator::finish_sync);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  limbeck::cuda::emulator::Vote vote{predicate != 0, 0};
  limbeck::cuda::emulator::wait_for_warp(mask, &vote, limbeck::cuda::emulator::finish_vote);
  return vote.ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = limbeck::cuda::emulator::lane_index();
  return limbeck::cuda::emulator::shuffle_from(mask, value, (lane & -width) + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = limbeck::cuda::emulator::lane_index(), source = lane ^ lane_mask;
  return limbeck::cuda::emulator::shuffle_from(mask, value, source < (lane & -width) + width ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = limbeck::cuda::emulator::lane_index(), source = lane + static_cast<int>(delta);
  return limbeck::cuda::emulator::shuffle_from(mask, value, source < (lane & -width) + width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = limbeck::cuda::emulator::lane_index(), source = lane - static_cast<int>(delta);
  return limbeck::cuda::emulator::shuffle_from(mask, value, source >= (lane & -width) ? source : lane);
}

// ---- Memory. Fibers take turns only at barriers, so a plain read and write is atomic. There is no atomicAdd of
// floats: the order of its additions would not be fixed.

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

#define LIMBECK_ATOMICS(T)                                                                                          \
  inline T atomicAdd(T* address, T value) {                                                                         \
    const T before = *address;                                                                                      \
    *address =                                                                                                      \
        static_cast<T>(static_cast<std::make_unsigned_t<T>>(before) + static_cast<std::make_unsigned_t<T>>(value)); \
    return before;                                                                                                  \
  }                                                                                                                 \
  inline T atomicMax(T* address, T value) {                                                                         \
    const T before = *address;                                                                                      \
    *address = before < value ? value : before;                                                                     \
    return before;                                                                                                  \
  }                                                                                                                 \
  inline T atomicMin(T* address, T value) {                                                                         \
    const T before = *address;                                                                                      \
    *address = value < before ? value : before;                                                                     \
    return before;                                                                                                  \
  }                                                                                                                 \
  inline T atomicExch(T* address, T value) {                                                                        \
    const T before = *address;                                                                                      \
    *address = value;                                                                                               \
    return before;                                                                                                  \
  }                                                                                                                 \
  inline T atomicOr(T* address, T value) {                                                                          \
    const T before = *address;                                                                                      \
    *address = before | value;                                                                                      \
    return before;                                                                                                  \
  }                                                                                                                 \
  inline T atomicCAS(T* address, T compare, T value) {                                                              \
    const T before = *address;                                                                                      \
    if (before == compare) *address = value;                                                                        \
    return before;                                                                                                  \
  }
LIMBECK_ATOMICS(int)
LIMBECK_ATOMICS(unsigned)
LIMBECK_ATOMICS(unsigned long long)
#undef LIMBECK_ATOMICS

// ---- Numbers.

template <typename To, typename From>
inline To limbeck_bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return limbeck_bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return limbeck_bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return limbeck_bit_cast<float>(x); }
inline float __int_as_float(int x) { return limbeck_bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return limbeck_bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return limbeck_bit_cast<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

/// c + the sum of the products of four signed bytes.
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8) {
    c +=
        static_cast<int8_t>(static_cast<unsigned>(a) >> shift) * static_cast<int8_t>(static_cast<unsigned>(b) >> shift);
  }
  return c;
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
using std::max;
using std::min;

namespace limbeck::cuda::emulator {

struct bf16 {
  uint16_t bits;
};

/// To the nearest, ties to even; a NaN becomes 0x7FFF, as on the device.
inline bf16 round_to_bf16(float x) {
  if (x != x) return {0x7FFF};
  const uint32_t bits = __float_as_uint(x);
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline uint32_t largest_bf16(uint32_t a, uint32_t b) {
  const auto larger = [](uint32_t x, uint32_t y) {  // in the upper halves
    const float largest = fmaxf(__uint_as_float(x & 0xFFFF0000u), __uint_as_float(y & 0xFFFF0000u));
    return __float_as_uint(largest) & 0xFFFF0000u;
  };
  return larger(a, b) | larger(a << 16, b << 16) >> 16;
}

// ---- Tensor cores and copies in the background; device_code.h describes them.

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(uint32_t* r, int count, bool transpose, const void* shared_row);
inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) { load_matrices(r, 4, false, shared_row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) { load_matrices(r, 4, true, shared_row); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row) { load_matrices(r, 2, false, shared_row); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row) { load_matrices(r, 2, true, shared_row); }

/// The bytes arrive at the wait, not before: until then they are poison.
void cp_async_16(void* shared, const void* global, bool valid);
void cp_async_commit();
void finish_copies(int groups_left);
template <int N>
void cp_async_wait() {
  finish_copies(N);
}

/// Where in the block's shared memory; matrices are described by it.
uint32_t shared_offset(const void* pointer);
/// Operands are read twice, at once and when the product is waited for, and must not have changed in between; until
/// then the sums are poison. `a` null: from shared memory.
void wgmma(float* sums, int columns, const uint32_t* a, uint64_t a_matrix, uint64_t b_matrix, bool transposed,
           bool adds);
void wgmma_fence();
void wgmma_commit();
void finish_products(int groups_left);
void fence_async_proxy();

}  // namespace limbeck::cuda::emulator
