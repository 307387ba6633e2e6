#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/packs.h"

namespace limbeck::cuda {

// Element-wise passes over matrices. A body is a plain struct that is copied to the device:
//
//   template <int kCount> struct Loaded { … };                  what it reads for kCount elements next to each other
//   template <int kCount> __device__ Loaded<kCount> load(int64_t row, int64_t column) const;
//   template <int kCount> __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const;
//
// Loads of several packs are in flight before the first store. A body may write what it reads, since no two threads
// touch the same elements.

inline constexpr int kRowThreads = 256;
inline constexpr int kRowUnroll = 2;  // packs a thread: 32 bytes in flight, and enough threads for the rest

template <int kCount, typename Body>
__global__ void __launch_bounds__(kRowThreads)
    each_pack_of_rows(Body body, int64_t first_row, uint32_t num_packs, uint32_t packs_per_row) {
  const uint32_t first = block_from_last() * static_cast<uint32_t>(kRowThreads * kRowUnroll) + threadIdx.x;
  typename Body::template Loaded<kCount> loaded[kRowUnroll];
  int64_t rows[kRowUnroll], columns[kRowUnroll];
#pragma unroll
  for (int u = 0; u < kRowUnroll; ++u) {
    const uint32_t index = first + static_cast<uint32_t>(u * kRowThreads);
    const uint32_t row = index / packs_per_row;
    rows[u] = first_row + row;
    columns[u] = static_cast<int64_t>(index - row * packs_per_row) * kCount;
    if (index < num_packs) loaded[u] = body.template load<kCount>(rows[u], columns[u]);
  }
#pragma unroll
  for (int u = 0; u < kRowUnroll; ++u) {
    const uint32_t index = first + static_cast<uint32_t>(u * kRowThreads);
    if (index < num_packs) body.template store<kCount>(rows[u], columns[u], loaded[u]);
  }
}

template <int kCount, typename Body>
void launch_each_pack_of_rows(Context& context, const Body& body, int64_t num_rows, int64_t packs_per_row) {
  // Indices of packs are 32-bit words, which divide faster.
  const int64_t rows_a_launch = std::max<int64_t>(1, (int64_t{1} << 31) / packs_per_row);
  for (int64_t row = 0; row < num_rows; row += rows_a_launch) {
    const int64_t num_packs = std::min(rows_a_launch, num_rows - row) * packs_per_row;
    const int64_t packs_a_block = kRowThreads * kRowUnroll;
    launch(context, each_pack_of_rows<kCount, Body>, dim3(static_cast<unsigned>(divide_up(num_packs, packs_a_block))),
           dim3(kRowThreads), 0, body, row, static_cast<uint32_t>(num_packs), static_cast<uint32_t>(packs_per_row));
  }
}

/// body for every element of [num_rows, width]. `is_packed`: rows are made of packs of kCount elements, all aligned.
template <int kCount, typename Body>
void for_each_of_rows(Context& context, const Body& body, int64_t num_rows, int64_t width, bool is_packed) {
  if (num_rows == 0 || width == 0) return;
  if (is_packed && width % kCount == 0) {
    launch_each_pack_of_rows<kCount>(context, body, num_rows, width / kCount);
  } else {
    launch_each_pack_of_rows<1>(context, body, num_rows, width);
  }
}

template <int kCount, typename Body>
__global__ void __launch_bounds__(kRowThreads) each_pack(Body body, int64_t count) {
  const int64_t num_packs = count / kCount;
  const int64_t first = static_cast<int64_t>(block_from_last()) * (kRowThreads * kRowUnroll) + threadIdx.x;
  typename Body::template Loaded<kCount> loaded[kRowUnroll];
#pragma unroll
  for (int u = 0; u < kRowUnroll; ++u) {
    const int64_t index = first + u * kRowThreads;
    if (index < num_packs) loaded[u] = body.template load<kCount>(0, index * kCount);
  }
#pragma unroll
  for (int u = 0; u < kRowUnroll; ++u) {
    const int64_t index = first + u * kRowThreads;
    if (index < num_packs) body.template store<kCount>(0, index * kCount, loaded[u]);
  }
  if constexpr (kCount > 1) {
    // The elements after the last whole pack are the block's that has this pack.
    const int64_t index = num_packs * kCount + threadIdx.x;
    if (blockIdx.x == 0 && index < count) {
      auto last = body.template load<1>(0, index);
      body.template store<1>(0, index, last);
    }
  }
}

/// body for `count` elements in one long row 0; is_packed: pointers are aligned.
template <int kCount, typename Body>
void for_each(Context& context, const Body& body, int64_t count, bool is_packed) {
  if (count == 0) return;
  const int64_t elements_a_block = int64_t{kRowThreads} * kRowUnroll * (is_packed ? kCount : 1);
  const dim3 grid(static_cast<unsigned>(divide_up(count, elements_a_block)));
  launch(context, is_packed ? each_pack<kCount, Body> : each_pack<1, Body>, grid, dim3(kRowThreads), 0, body, count);
}

}  // namespace limbeck::cuda
