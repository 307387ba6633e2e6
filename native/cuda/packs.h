#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// Elements of T that one 16-byte access moves.
template <typename T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

/// Memory is read and written once, so it need not push other things out of the caches.
inline constexpr bool kStreaming = true;

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Words are moved as bytes under the emulator: the host's compiler may assume that a uint4 is no float.
#ifdef LIMBECK_CUDA_EMULATED

template <typename Words>
inline Words emulated_load(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(Words) != 0) __builtin_trap();  // the device would fault, too
  Words words;
  std::memcpy(&words, pointer, sizeof words);
  return words;
}

template <typename Words>
inline void emulated_store(void* pointer, const Words& words) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(Words) != 0) __builtin_trap();
  std::memcpy(pointer, &words, sizeof words);
}

template <bool kIsStreaming = false>
inline uint4 load_16(const void* pointer) {
  return emulated_load<uint4>(pointer);
}
template <bool kIsStreaming = false>
inline void store_16(void* pointer, const uint4& words) {
  emulated_store(pointer, words);
}
inline uint2 load_8(const void* pointer) { return emulated_load<uint2>(pointer); }
inline void store_8(void* pointer, const uint2& words) { emulated_store(pointer, words); }

#else

template <bool kIsStreaming = false>
__device__ __forceinline__ uint4 load_16(const void* pointer) {
  return kIsStreaming ? __ldcs(static_cast<const uint4*>(pointer)) : *static_cast<const uint4*>(pointer);
}
template <bool kIsStreaming = false>
__device__ __forceinline__ void store_16(void* pointer, const uint4& words) {
  if (kIsStreaming) {
    __stcs(static_cast<uint4*>(pointer), words);
  } else {
    *static_cast<uint4*>(pointer) = words;
  }
}
__device__ __forceinline__ uint2 load_8(const void* pointer) { return *static_cast<const uint2*>(pointer); }
__device__ __forceinline__ void store_8(void* pointer, const uint2& words) { *static_cast<uint2*>(pointer) = words; }

#endif

/// The elements of a 16-byte pack as floats, and back (rounded to the nearest).
template <typename T>
__device__ __forceinline__ void unpack(const uint4& words, float* out) {
  if constexpr (sizeof(T) == 4) {
    out[0] = __uint_as_float(words.x);
    out[1] = __uint_as_float(words.y);
    out[2] = __uint_as_float(words.z);
    out[3] = __uint_as_float(words.w);
  } else {
    const float2 a = unpack_bf16(words.x), b = unpack_bf16(words.y);
    const float2 c = unpack_bf16(words.z), d = unpack_bf16(words.w);
    out[0] = a.x;
    out[1] = a.y;
    out[2] = b.x;
    out[3] = b.y;
    out[4] = c.x;
    out[5] = c.y;
    out[6] = d.x;
    out[7] = d.y;
  }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float* x) {
  uint4 words;
  if constexpr (sizeof(T) == 4) {
    words.x = __float_as_uint(x[0]);
    words.y = __float_as_uint(x[1]);
    words.z = __float_as_uint(x[2]);
    words.w = __float_as_uint(x[3]);
  } else {
    words.x = pack_bf16(x[0], x[1]);
    words.y = pack_bf16(x[2], x[3]);
    words.z = pack_bf16(x[4], x[5]);
    words.w = pack_bf16(x[6], x[7]);
  }
  return words;
}

/// kCount elements from `p` on, which is aligned to all of them (to 16 bytes where they are more), or any one element.
template <bool kIsStreaming = false, typename T, int kCount>
__device__ __forceinline__ void load(const T* p, float (&out)[kCount]) {
  if constexpr (kCount == 1) {
    out[0] = to_float(*p);
  } else if constexpr (kCount * sizeof(T) == 8) {
    const uint2 words = load_8(p);
    const float2 a = unpack_bf16(words.x), b = unpack_bf16(words.y);
    out[0] = a.x;
    out[1] = a.y;
    out[2] = b.x;
    out[3] = b.y;
  } else {
    static_assert(kCount % kPack<T> == 0, "whole packs");
#pragma unroll
    for (int i = 0; i < kCount; i += kPack<T>) unpack<T>(load_16<kIsStreaming>(p + i), out + i);
  }
}

template <bool kIsStreaming = false, typename T, int kCount>
__device__ __forceinline__ void store(T* p, const float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    *p = from_float<T>(x[0]);
  } else if constexpr (kCount * sizeof(T) == 8) {
    store_8(p, {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])});
  } else {
    static_assert(kCount % kPack<T> == 0, "whole packs");
#pragma unroll
    for (int i = 0; i < kCount; i += kPack<T>) store_16<kIsStreaming>(p + i, pack<T>(x + i));
  }
}

}  // namespace limbeck::cuda
