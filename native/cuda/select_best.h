#pragma once

#include "cuda/packs.h"

// Ranking. An entry is one 64-bit word, the greater the better: its score in the upper half, so that it orders as an
// unsigned number, and the complement of its index in the lower, so that equal scores go by lower index. No two are
// equal, hence what is best does not depend on who looked first. 0 is no entry.

namespace limbeck::cuda {

using Entry = unsigned long long;

/// Of a score that is NaN: the worst.
inline constexpr uint32_t kNaNKey = 1;

__device__ __forceinline__ uint32_t key_of(float score) {
  if (score != score) return kNaNKey;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // −0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float score_of(uint32_t key) {
  if (key == kNaNKey) return __builtin_nanf("");
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ Entry entry_of(uint32_t key, int64_t index) {
  return static_cast<Entry>(key) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(index));
}
__device__ __forceinline__ uint32_t key_of_entry(Entry entry) { return static_cast<uint32_t>(entry >> 32); }
__device__ __forceinline__ int32_t index_of_entry(Entry entry) {
  return static_cast<int32_t>(~static_cast<uint32_t>(entry));
}

inline constexpr int kSelectThreads = 512;
inline constexpr int kSelectUnroll = 4;  // packs of 16 bytes that a thread reads at a time
inline constexpr int kMaxCandidates = 2048;
/// With more, the bound that the threads' best entries give lets too many through.
inline constexpr int kMaxBoundedK = kSelectThreads * 3 / 4;

struct SelectMemory {
  Entry candidates[kMaxCandidates];
  alignas(16) uint32_t keys[kSelectThreads];
  uint32_t histogram[256];
  uint32_t bound, count;
  Entry prefix, mask;
  int remaining;
  bool is_done;
};

/// Calls visit(entry) for the thread's entries. A source is read in packs of kWidth entries, 16 bytes of aligned memory
/// that may reach beyond the last entry.
template <typename Source, typename Visit>
__device__ __forceinline__ void for_each_entry(const Source& source, int64_t count, Visit visit) {
  constexpr int kWidth = Source::kWidth, kStride = kSelectThreads * kWidth;
  for (int64_t first = threadIdx.x * kWidth; first < count; first += kSelectUnroll * kStride) {
    uint4 raw[kSelectUnroll];
#pragma unroll
    for (int u = 0; u < kSelectUnroll; ++u) {
      if (first + u * kStride < count) raw[u] = source.load(first + u * kStride);
    }
#pragma unroll
    for (int u = 0; u < kSelectUnroll; ++u) {
      const int64_t i = first + u * kStride;
      if (i >= count) break;
      Entry entries[kWidth];
      source.entries(raw[u], i, entries);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (i + j < count) visit(entries[j]);
      }
    }
  }
}

/// Number of an array's entries that are better.
__device__ __forceinline__ int rank_among(const Entry* entries, int count, Entry entry) {
  int rank = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) rank += entries[i] > entry ? 1 : 0;
  return rank;
}

/// The best k when they are few: the k-th of the best keys of groups of threads is a bound that k entries reach, and
/// few more do. Those are collected and ranked against each other. False, with nothing written, where too many reach
/// it.
template <typename Source, typename Write>
__device__ bool select_by_bound(SelectMemory& memory, const Source& source, int64_t count, int k, Write write) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t best = 0;
  for_each_entry(source, count, [&](Entry entry) {
    const uint32_t key = key_of_entry(entry);
    best = key > best ? key : best;
  });
  int num_groups = 32;
  while (num_groups < 2 * k && num_groups < kSelectThreads) num_groups *= 2;
  const int lanes = kSelectThreads / num_groups;
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, best, mask);
    if (mask < lanes && other > best) best = other;
  }
  if (thread % lanes == 0) memory.keys[thread / lanes] = best;
  if (thread == 0) {
    memory.bound = 1;  // fewer than k groups have an entry
    memory.count = 0;
  }
  __syncthreads();
  if (thread < num_groups) {
    const uint32_t own = memory.keys[thread];
    int rank = 0;  // equal keys by group
    for (int i = 0; i < num_groups; i += 4) {
      const uint4 others = load_16(memory.keys + i);
      rank += others.x > own || (others.x == own && i < thread) ? 1 : 0;
      rank += others.y > own || (others.y == own && i + 1 < thread) ? 1 : 0;
      rank += others.z > own || (others.z == own && i + 2 < thread) ? 1 : 0;
      rank += others.w > own || (others.w == own && i + 3 < thread) ? 1 : 0;
    }
    if (rank == k - 1 && own > 0) memory.bound = own;
  }
  __syncthreads();
  const uint32_t bound = memory.bound;
  for_each_entry(source, count, [&](Entry entry) {
    if (key_of_entry(entry) < bound) return;
    const uint32_t at = atomicAdd(&memory.count, 1u);
    if (at < kMaxCandidates) memory.candidates[at] = entry;
  });
  __syncthreads();
  if (memory.count > kMaxCandidates) return false;
  const int found = static_cast<int>(memory.count);
  for (int i = thread; i < found; i += kSelectThreads) {
    const Entry entry = memory.candidates[i];
    const int rank = rank_among(memory.candidates, found, entry);
    if (rank < k) write(rank, entry);
  }
  for (int rank = found + thread; rank < k; rank += kSelectThreads) write(rank, Entry{0});
  return true;
}

/// Sorts by falling entry; count is a power of 2.
__device__ inline void sort_entries(Entry* entries, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int pair = static_cast<int>(threadIdx.x); pair < count / 2; pair += kSelectThreads) {
        const int low = pair / distance * 2 * distance + pair % distance, high = low + distance;
        const Entry a = entries[low], b = entries[high];
        const bool is_falling = (low & size) == 0;
        if (is_falling ? a < b : a > b) {
          entries[low] = b;
          entries[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

/// The best k, however many, by the digits of the k-th.   sorted [k rounded up to a power of 2] scratch
template <typename Source, typename Write>
__device__ void select_by_digits(SelectMemory& memory, const Source& source, int64_t count, int k, Entry* sorted,
                                 Write write) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread == 0) {
    memory.prefix = 0;
    memory.mask = 0;
    memory.remaining = k;
    memory.is_done = false;
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int i = thread; i < 256; i += kSelectThreads) memory.histogram[i] = 0;
    __syncthreads();
    const Entry prefix = memory.prefix, mask = memory.mask;
    for_each_entry(source, count, [&](Entry entry) {
      if (entry != 0 && (entry & mask) == prefix) atomicAdd(&memory.histogram[(entry >> shift) & 255], 1u);
    });
    __syncthreads();
    if (thread == 0) {
      int digit = 255;
      int remaining = memory.remaining;
      while (digit > 0 && memory.histogram[digit] < static_cast<uint32_t>(remaining)) {
        remaining -= static_cast<int>(memory.histogram[digit--]);
      }
      // All that share these digits are wanted, or there are not even k.
      memory.is_done = memory.histogram[digit] <= static_cast<uint32_t>(remaining);
      memory.remaining = remaining;
      memory.prefix = prefix | static_cast<Entry>(digit) << shift;
      memory.mask = mask | Entry{255} << shift;
      memory.count = 0;
    }
    __syncthreads();
    if (memory.is_done) break;
  }
  const Entry least = memory.prefix;
  for_each_entry(source, count, [&](Entry entry) {
    if (entry != 0 && entry >= least) sorted[atomicAdd(&memory.count, 1u)] = entry;
  });
  __syncthreads();
  int size = 1;
  while (size < k) size *= 2;
  for (int i = static_cast<int>(memory.count) + thread; i < size; i += kSelectThreads) sorted[i] = 0;
  sort_entries(sorted, size);
  for (int rank = thread; rank < k; rank += kSelectThreads) write(rank, sorted[rank]);
}

/// Of the scratch that select_best() needs.
inline int64_t sorted_entries(int64_t k) {
  if (k <= kMaxCandidates) return 0;
  int64_t size = 1;
  while (size < k) size *= 2;
  return size;
}

/// write(rank, entry) for the k best entries of the source, by all threads of a block; entry 0 where there are fewer.
///   sorted [sorted_entries(k)] scratch of the block
template <typename Source, typename Write>
__device__ void select_best(SelectMemory& memory, const Source& source, int64_t count, int k, Entry* sorted,
                            Write write) {
  if (k <= kMaxBoundedK && select_by_bound(memory, source, count, k, write)) return;
  select_by_digits(memory, source, count, k, k <= kMaxCandidates ? memory.candidates : sorted, write);
}

}  // namespace limbeck::cuda
