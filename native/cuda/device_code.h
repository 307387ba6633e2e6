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
using emulator::cluster_arrive;
using emulator::cluster_rank;
using emulator::cluster_store;
using emulator::cluster_wait;

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

/// The same at an address of whole KiB, as matrices of warpgroup products need it.
#define LIMBECK_MATRIX_MEMORY(type, name) LIMBECK_SHARED_MEMORY(type, name)

#define LIMBECK_HAS_WGMMA
inline uint32_t matrix_address(const void* matrix) { return emulator::shared_offset(matrix); }
template <bool kTransposed, int N>
inline void wgmma(float (&sums)[N][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  emulator::wgmma(sums[0], 8 * N, a, 0, b, kTransposed, adds);
}
template <bool kTransposed, int N>
inline void wgmma(float (&sums)[N][4], uint64_t a, uint64_t b, bool adds) {
  emulator::wgmma(sums[0], 8 * N, nullptr, a, b, kTransposed, adds);
}
using emulator::fence_async_proxy;
using emulator::wgmma_commit;
using emulator::wgmma_fence;
inline void compute_first(float) {}
template <int kGroups, int N>
inline void wgmma_wait(float (&)[N][4]) {
  emulator::finish_products(kGroups);
}

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

inline uint32_t largest_bf16(uint32_t a, uint32_t b) { return emulator::largest_bf16(a, b); }

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* pointer) { return reinterpret_cast<SharedAddress>(pointer); }
inline void ldmatrix_x4(uint32_t (&r)[4], SharedAddress row) { ldmatrix_x4(r, reinterpret_cast<const void*>(row)); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], SharedAddress row) {
  ldmatrix_x4_trans(r, reinterpret_cast<const void*>(row));
}

inline void prefetch_l2(const void*) {}
inline void prefetch_l2(const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0 || bytes % 16 != 0) __builtin_trap();
  // The sanitizer sees what lies outside.
  for (int i = 0; i < bytes; i += 16) static_cast<void>(static_cast<const volatile char*>(global)[i]);
}

#else  // nvcc

using bf16 = __nv_bfloat16;

#define LIMBECK_SHARED_MEMORY(type, name)                                 \
  extern __shared__ __align__(128) unsigned char limbeck_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(limbeck_shared_memory)

/// The same at an address of whole KiB, as matrices of warpgroup products need it.
#define LIMBECK_MATRIX_MEMORY(type, name)                                  \
  extern __shared__ __align__(1024) unsigned char limbeck_matrix_memory[]; \
  type* const name = reinterpret_cast<type*>(limbeck_matrix_memory)

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

/// The larger of each two of two bf16 in a register; NaN loses.
__device__ __forceinline__ uint32_t largest_bf16(uint32_t a, uint32_t b) {
  uint32_t largest;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(largest) : "r"(a), "r"(b));
  return largest;
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

// Thread-block clusters: blocks that run at the same time and write to each other's shared memory. Compute capability
// 9.0 on; a kernel that uses them has no static shared memory.

/// Of this block in its cluster.
__device__ __forceinline__ int cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}

/// A barrier of all threads of the cluster that have not ended, in two halves: what is written before the arrival, in
/// any block, is there after the wait. Each thread waits once for each of its arrivals, or ends.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// Writes where `shared`, an address in this block's shared memory, lies in that of block `rank` of the cluster, which
/// must run: a barrier before tells.
__device__ __forceinline__ void cluster_store(void* shared, int rank, uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("st.shared::cluster.u32 [%0], %1;" : : "r"(address), "r"(value) : "memory");
#endif
}

/// Starts to fetch the cache line into the second-level cache.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(global)));
}
/// The same of many lines, by one thread: `global` and `bytes` are multiples of 16. Nothing before compute capability
/// 9.0.
__device__ __forceinline__ void prefetch_l2(const void* global, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(__cvta_generic_to_global(global)), "r"(bytes));
#endif
}

// ---- Products of a warpgroup: four warps, the first of which is a multiple of four. Only in code between #ifdef
// LIMBECK_HAS_WGMMA, which is compiled for sm_90a.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define LIMBECK_HAS_WGMMA
#endif

/// Of a matrix of such a product, for describe_matrix().
__device__ __forceinline__ uint32_t matrix_address(const void* matrix) { return shared_address(matrix); }

#define LIMBECK_SUMS(s) "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
#define LIMBECK_LEFT(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])

/// sums = a·b, or += where `adds`, of one warpgroup: a [64, 16], b [16, 8·N], in the background. A warp has rows 16·w …
/// of a and of the sums, as fragments of mma_m16n8k16: sums[n] is its columns 8·n … 8·n + 7. b is the matrix whose rows
/// are b's columns, or, kTransposed, b's rows.
///   wgmma_fence() before, where registers of a or sums were written since the last wait; neither may be touched until
///   wgmma_wait() of a group that has it.
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&sums)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : LIMBECK_SUMS(sums[0]), LIMBECK_SUMS(sums[1]), LIMBECK_SUMS(sums[2]), LIMBECK_SUMS(sums[3]),
        LIMBECK_SUMS(sums[4]), LIMBECK_SUMS(sums[5]), LIMBECK_SUMS(sums[6]), LIMBECK_SUMS(sums[7])
      : LIMBECK_LEFT(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&sums)[16][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
      : LIMBECK_SUMS(sums[0]), LIMBECK_SUMS(sums[1]), LIMBECK_SUMS(sums[2]), LIMBECK_SUMS(sums[3]),
        LIMBECK_SUMS(sums[4]), LIMBECK_SUMS(sums[5]), LIMBECK_SUMS(sums[6]), LIMBECK_SUMS(sums[7]),
        LIMBECK_SUMS(sums[8]), LIMBECK_SUMS(sums[9]), LIMBECK_SUMS(sums[10]), LIMBECK_SUMS(sums[11]),
        LIMBECK_SUMS(sums[12]), LIMBECK_SUMS(sums[13]), LIMBECK_SUMS(sums[14]), LIMBECK_SUMS(sums[15])
      : LIMBECK_LEFT(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kTransposed ? 1 : 0));
}
/// The same with a in shared memory, [64, …] as describe_matrix() has it.
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&sums)[8][4], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, %35;\n}\n"
      : LIMBECK_SUMS(sums[0]), LIMBECK_SUMS(sums[1]), LIMBECK_SUMS(sums[2]), LIMBECK_SUMS(sums[3]),
        LIMBECK_SUMS(sums[4]), LIMBECK_SUMS(sums[5]), LIMBECK_SUMS(sums[6]), LIMBECK_SUMS(sums[7])
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&sums)[16][4], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, %67;\n}\n"
      : LIMBECK_SUMS(sums[0]), LIMBECK_SUMS(sums[1]), LIMBECK_SUMS(sums[2]), LIMBECK_SUMS(sums[3]),
        LIMBECK_SUMS(sums[4]), LIMBECK_SUMS(sums[5]), LIMBECK_SUMS(sums[6]), LIMBECK_SUMS(sums[7]),
        LIMBECK_SUMS(sums[8]), LIMBECK_SUMS(sums[9]), LIMBECK_SUMS(sums[10]), LIMBECK_SUMS(sums[11]),
        LIMBECK_SUMS(sums[12]), LIMBECK_SUMS(sums[13]), LIMBECK_SUMS(sums[14]), LIMBECK_SUMS(sums[15])
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(kTransposed ? 1 : 0));
}

#undef LIMBECK_SUMS
#undef LIMBECK_LEFT

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most the last kGroups groups are under way; `sums` is of one that no longer is.
template <int kGroups, int N>
__device__ __forceinline__ void wgmma_wait(float (&sums)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
  // The compiler must not read the sums before.
#pragma unroll
  for (int n = 0; n < N; ++n) {
    asm volatile("" : "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])::"memory");
  }
}
/// What x ≥ 0, or NaN, comes from is computed before what follows: the compiler would rather wait first for products
/// under way.
__device__ __forceinline__ void compute_first(float x) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p nanosleep.u32 0;\n}\n" ::"f"(x) : "memory");
}
/// What this thread wrote or copied to shared memory is there for products, after a barrier.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

/// Where a product finds a matrix in shared memory: panels of 64 columns, `panel_bytes` apart, with rows of 128 bytes,
/// each panel at an address of whole KiB, in which the 16-byte chunks c of row r are at place c ^ (r % 8). Of a matrix
/// whose rows are summed along (a, and b unless transposed) a product reads 16 columns of one panel.
__device__ __forceinline__ uint64_t describe_matrix(const void* matrix, int panel_bytes) {
  constexpr uint64_t kEightRows = 1024, kSwizzle128 = 1;
  return matrix_address(matrix) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | kEightRows >> 4 << 32 |
         kSwizzle128 << 62;
}
/// The matrix `bytes` further on: 32 for the next 16 columns, 2048 for the next 16 rows.
__device__ __forceinline__ uint64_t later_matrix(uint64_t matrix, int bytes) {
  // Addresses are in the lower half, which they do not fill.
  const uint32_t address = static_cast<uint32_t>(matrix) + static_cast<uint32_t>(bytes >> 4);
  return (matrix & 0xFFFFFFFF00000000u) | address;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t packed) {
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u));
}

}  // namespace limbeck::cuda
