#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/packs.h"
#include "cuda/pending_sums.h"

namespace limbeck::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

/// Sum over groups of kThreads neighbouring lanes of a warp (a power of 2), the same bits in each of them.
template <int kThreads, typename Number>
__device__ __forceinline__ Number lanes_sum(Number x) {
#pragma unroll
  for (int offset = kThreads / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

/// The largest of a warp's; NaN loses.
__device__ __forceinline__ float lanes_largest(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

/// Sum over the kThreads threads of a block, in every one of them. `shared` [kThreads / 32] must not be in use; between
/// two sums with the same memory there must be a barrier.
template <int kThreads, typename Number>
__device__ __forceinline__ Number block_sum(Number x, Number* shared) {
  x = lanes_sum<32>(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  Number sum = shared[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum += shared[i];
  return sum;
}

// Sums over rows of what a body gives. Besides those of rows.h it has
//
//   static constexpr int kSets;                                   results for each column
//   template <int kCount> __device__ void store(row, column, Loaded<kCount>&, float (&out)[kSets][kCount]) const;

inline constexpr int kSumThreads = 256;

/// Rows whose loads are in flight at once: as many as registers hold.
template <typename Loaded>
inline constexpr int kSumUnroll = sizeof(Loaded) <= 32 ? 4 : 2;

/// One block: 2^log_lanes packs of columns of every gridDim.y-th step of rows, from the last on: all blocks together go
/// through the matrix from its end to its beginning, as block_from_last() says.
///   partials [gridDim.y, kSets, width] =
template <int kCount, typename Body>
__global__ void __launch_bounds__(kSumThreads, Body::kSets == 1 ? 4 : 2)
    sum_rows(Body body, int64_t num_rows, int64_t width, int log_lanes, float* partials) {
  using Loaded = typename Body::template Loaded<kCount>;
  constexpr int kSets = Body::kSets, kUnroll = kSumUnroll<Loaded>;
  __shared__ float shared[kSets * kCount * kSumThreads];
  const int lanes = 1 << log_lanes, groups = kSumThreads >> log_lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1), group = static_cast<int>(threadIdx.x) >> log_lanes;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * lanes * kCount;
  const int64_t column = first_column + lane * kCount;
  const int step_rows = groups * kUnroll, last_step = static_cast<int>((num_rows - 1) / step_rows);
  float sums[kSets][kCount] = {};
  if (column < width) {
    for (int step = last_step - static_cast<int>(blockIdx.y); step >= 0; step -= static_cast<int>(gridDim.y)) {
      const int64_t first = static_cast<int64_t>(step) * step_rows + group;
      Loaded loaded[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t row = first + u * groups;
        if (row < num_rows) loaded[u] = body.template load<kCount>(row, column);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t row = first + u * groups;
        if (row >= num_rows) continue;
        float out[kSets][kCount];
        body.template store<kCount>(row, column, loaded[u], out);
#pragma unroll
        for (int s = 0; s < kSets; ++s) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) sums[s][i] += out[s][i];
        }
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSets; ++s) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[(s * kCount + i) * kSumThreads + threadIdx.x] = sums[s][i];
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kSets * kCount * lanes; index += kSumThreads) {
    const int slot = index >> log_lanes, slot_lane = index & (lanes - 1);  // slot: set·kCount + element
    const int64_t out_column = first_column + slot_lane * kCount + slot % kCount;
    float sum = 0;
    for (int g = 0; g < groups; ++g) sum += shared[slot * kSumThreads + (g << log_lanes) + slot_lane];
    if (out_column < width) {
      partials[(static_cast<int64_t>(blockIdx.y) * kSets + slot / kCount) * width + out_column] = sum;
    }
  }
}

/// Rows are dealt out by the shape alone, to about so many blocks: those that are on an H100 or H200 at a time.
template <typename Body>
inline constexpr int64_t kSumBlocks = Body::kSets == 1 ? 512 : 256;

/// Where sums of columns [first, first + count) of [kSets·width] are added.
struct SumTarget {
  int64_t first, count;
  float* out;
};
using SumTargets = std::initializer_list<SumTarget>;

template <int kCount, typename Body>
void add_sums_of_rows(Context& context, const Body& body, int64_t num_rows, int64_t width, SumTargets targets,
                      PendingSums* pending) {
  const int64_t num_packs = divide_up(width, kCount);
  int log_lanes = 0;
  while (log_lanes < 5 && (int64_t{1} << log_lanes) < num_packs) ++log_lanes;
  const int64_t lanes = int64_t{1} << log_lanes, groups = kSumThreads / lanes;
  const int64_t tiles = divide_up(num_packs, lanes);
  const int64_t steps = divide_up(num_rows, groups * kSumUnroll<typename Body::template Loaded<kCount>>);
  const int64_t blocks = std::min(steps, std::max<int64_t>(1, kSumBlocks<Body> / tiles));
  const int64_t row_size = Body::kSets * width;
  OpSums sums(context, pending);
  float* partials = context.arena.allocate<float>(blocks * row_size);
  launch(context, sum_rows<kCount, Body>, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(blocks)),
         dim3(kSumThreads), 0, body, num_rows, width, log_lanes, partials);
  for (const SumTarget& target : targets) sums.add(partials + target.first, row_size, blocks, target.count, target.out);
  sums.finish();
}

/// out of each target += sums over rows, at once or with those that are `pending`.
/// is_packed: as for_each_of_rows
template <int kCount, typename Body>
void for_each_of_rows_summing(Context& context, const Body& body, int64_t num_rows, int64_t width, bool is_packed,
                              SumTargets targets, PendingSums* pending = nullptr) {
  if (num_rows == 0 || width == 0) return;
  if (is_packed && width % kCount == 0) {
    add_sums_of_rows<kCount>(context, body, num_rows, width, targets, pending);
  } else {
    add_sums_of_rows<1>(context, body, num_rows, width, targets, pending);
  }
}

}  // namespace limbeck::cuda
