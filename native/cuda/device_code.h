#pragma once

#include <cstdint>

// The words in which kernels are written. A .cu file that uses no others compiles for the device with nvcc, and for the
// processor with any C++ compiler: then emulator/ stands in for the device (LIMBECK_CUDA_EMULATED). What only inline
// PTX can say is wrapped here, so that each wrapper has its twin there.

#ifdef LIMBECK_CUDA_EMULATED
#include "cuda/emulator/device.h"
#include "cuda/emulator/runtime.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

namespace limbeck::cuda {

#ifdef LIMBECK_CUDA_EMULATED

using emulator::bf16;

/// Declares `type* name`, the dynamic shared memory of the block, aligned to 128 bytes.
#define LIMBECK_SHARED_MEMORY(type, name) \
  type* const name = static_cast<type*>(limbeck::cuda::emulator::shared_memory())

using emulator::cp_async_16;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::ldmatrix_x2;
using emulator::ldmatrix_x2_trans;
using emulator::ldmatrix_x4;
using emulator::ldmatrix_x4_trans;
using emulator::mma_m16n8k16;

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
inline T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return emulator::round_to_bf16(x);
  }
}

inline uint32_t pack_bf16(float low, float high) {
  return emulator::round_to_bf16(low).bits | static_cast<uint32_t>(emulator::round_to_bf16(high).bits) << 16;
}

inline float exp2_approx(float x) { return exp2f(x); }

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* pointer) { return reinterpret_cast<SharedAddress>(pointer); }
inline void ldmatrix_x4(uint32_t (&r)[4], SharedAddress row) { ldmatrix_x4(r, reinterpret_cast<const void*>(row)); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], SharedAddress row) {
  ldmatrix_x4_trans(r, reinterpret_cast<const void*>(row));
}

inline void prefetch_l2(const void*) {}

#else  // nvcc

using bf16 = __nv_bfloat16;

#define LIMBECK_SHARED_MEMORY(type, name)                                 \
  extern __shared__ __align__(128) unsigned char limbeck_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(limbeck_shared_memory)

__host__ __device__ __forceinline__ float to_float(float x) { return x; }
__host__ __device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

/// Rounded to the nearest, ties to even.
template <typename T>
__host__ __device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// Two bf16 in one register, `low` in the lower half: the first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x to two units in the last place; zero below the normal numbers.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// d += a·b of one warp, a [16, 16] row-major, b [16, 8] column-major, in the fragment layouts of PTX
/// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. With g = lane/4 and t = lane%4:
///   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
///   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]
///   d[0], d[1] = D[g][2t, 2t+1]   d[2], d[3] = D[g+8][2t, 2t+1]
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Where in shared memory a pointer points: a number in one register, for arithmetic.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

/// Loads 8x8 matrices of 16-bit elements: lane 8i + j gives the address of row j of matrix i (16 bytes, aligned); lane
/// l receives in r[i] the elements 2(l%4), 2(l%4)+1 of row l/4. With _trans, of the transposed matrix.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  ldmatrix_x4(r, shared_address(shared_row));
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  ldmatrix_x4_trans(r, shared_address(shared_row));
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

/// Copies 16 aligned bytes to shared memory in the background, past the registers and the first-level cache; zeros
/// where not `valid` (`global` is then not read, but must be an address).
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
/// Closes a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most the last N groups of this thread are under way. Others see the bytes after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// Starts to fetch the cache line into the second-level cache.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(global)));
}

#endif

__device__ __forceinline__ float2 unpack_bf16(uint32_t packed) {
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u));
}

}  // namespace limbeck::cuda
