#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/loss_rows.h"
#include "cuda/quantised_items.h"
#include "cuda/select_best.h"

// How the searches of top_k_items() score items.

namespace limbeck::cuda {

inline constexpr int64_t kMaxScannedWidth = 1024;  // eight queries in fp32 fill 32 KiB of shared memory
inline constexpr int kTileItems = 64;              // scanned by a warp at a time

__device__ __forceinline__ bool is_excluded(const uint32_t* bits, int64_t item) {
  return bits && (__ldg(bits + item / 32) >> (item % 32) & 1) != 0;
}

struct EntrySource {
  static constexpr int kWidth = 2;
  const Entry* list;

  __device__ __forceinline__ uint4 load(int64_t i) const { return load_16(list + i); }
  __device__ __forceinline__ static void unpack_pair(const uint4& raw, Entry (&out)[kWidth]) {
    out[0] = static_cast<Entry>(raw.y) << 32 | raw.x;
    out[1] = static_cast<Entry>(raw.w) << 32 | raw.z;
  }
  __device__ __forceinline__ void entries(const uint4& raw, int64_t, Entry (&out)[kWidth]) const {
    unpack_pair(raw, out);
  }
};

/// Which items a warp scores at once: kLanes lanes take the same kItems ones, whose loads are in flight together.
template <int kLanes, int kItems>
struct ScanStep {
  static constexpr int kStep = 32 / kLanes * kItems;  // items of a warp
  static_assert(kTileItems % kStep == 0);
  /// The item whose score a lane gets; with more lanes than items, several get the same.
  __device__ __forceinline__ static int item_of_lane(int lane) { return lane / kLanes * kItems + lane % kItems; }
  __device__ __forceinline__ static bool is_first_with_item(int lane) { return lane % kLanes < kItems; }
};
template <int kLanes, int kQueries>
using StepOf = ScanStep<kLanes, std::min(kLanes, kQueries == 1 ? 8 : 4)>;

/// The sum over an item's lanes, of the item that is this lane's. sums [kItems] of its own are used up.
template <int kLanes, typename Number, int kItems>
__device__ __forceinline__ Number sum_over_lanes(int lane, Number (&sums)[kItems]) {
#pragma unroll
  for (int mask = kLanes / 2; mask >= kItems; mask /= 2) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], mask);
  }
  // Each exchange halves the items that a lane has sums of, and doubles the lanes that its sums are over.
#pragma unroll
  for (int half = kItems / 2; half > 0; half /= 2) {
    const bool is_upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Number kept = is_upper ? sums[i + half] : sums[i];
      const Number given = is_upper ? sums[i] : sums[i + half];
      sums[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
    }
  }
  return sums[0];
}

/// How a warp scores items: kLanes lanes an item, each with 16 bytes of it at a time. The order of the sums is the same
/// for any number of queries and items at once.
template <typename T, int kLanes>
struct ItemScorer {
  static constexpr int W = kPack<T>;

  const T* items;
  int64_t num_items;
  int hidden_size, num_packs;  // of an item, the last perhaps in part

  /// scores[q] = of item first + item_of_lane(lane).
  ///   queries [kQueries, num_packs·W] fp32 in shared memory, zeros beyond hidden_size
  template <bool kIsPacked, int kItems, int kQueries>
  __device__ __forceinline__ void score(ScanStep<kLanes, kItems>, int64_t first, const float* queries, int lane,
                                        float (&scores)[kQueries]) const {
    float sums[kQueries][kItems] = {};
    const int64_t group_first = first + lane / kLanes * kItems;
    for (int p = lane % kLanes; p < num_packs; p += kLanes) {
      uint4 raw[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        raw[i] = group_first + i < num_items ? pack_of<kIsPacked>(group_first + i, p) : make_uint4(0, 0, 0, 0);
      }
      add_products(raw, p, queries, sums);
    }
    finish(lane, sums, scores);
  }

  /// sums[q][i] += the products of pack p of query q and of item i, `raw`.
  template <int kItems, int kQueries>
  __device__ __forceinline__ void add_products(const uint4 (&raw)[kItems], int p, const float* queries,
                                               float (&sums)[kQueries][kItems]) const {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      float query[W];
      load(queries + (q * num_packs + p) * W, query);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        float x[W];
        unpack<T>(raw[i], x);
#pragma unroll
        for (int j = 0; j < W; ++j) sums[q][i] = fmaf(query[j], x[j], sums[q][i]);
      }
    }
  }

  /// scores[q] = the sum over the lanes of the item that is this lane's.
  template <int kItems, int kQueries>
  __device__ __forceinline__ static void finish(int lane, float (&sums)[kQueries][kItems], float (&scores)[kQueries]) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) scores[q] = sum_over_lanes<kLanes>(lane, sums[q]);
  }

  template <bool kIsPacked>
  __device__ __forceinline__ uint4 pack_of(int64_t item, int p) const {
    const T* from = items + item * hidden_size + p * W;
    if constexpr (kIsPacked) {
      return load_16<kStreaming>(from);
    } else {
      float x[W];
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] = p * W + j < hidden_size ? to_float(from[j]) : 0.0f;
      return pack<T>(x);
    }
  }
};

/// queries [num_queries, hidden_size] → shared memory for ItemScorer; all threads of the block.
template <int kQueries, typename T>
__device__ void stage_queries(const T* queries, int num_queries, int hidden_size, int width, float* staged) {
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * width; i += static_cast<int>(blockDim.x)) {
    const int q = i / width, c = i % width;
    staged[i] = q < num_queries && c < hidden_size ? to_float(queries[static_cast<int64_t>(q) * hidden_size + c]) : 0;
  }
  __syncthreads();
}

__device__ __forceinline__ void write_item(int32_t* indices, float* scores, int64_t at, Entry entry) {
  indices[at] = entry == 0 ? -1 : index_of_entry(entry);
  scores[at] = entry == 0 ? kMinusInfinity : score_of(key_of_entry(entry));
}

template <typename T>
struct ItemQuery {
  const T* queries;
  const T* items;
  const uint32_t* excluded;
  int64_t num_queries, num_items, hidden_size, k;
  QuantisedItems quantised;
  int64_t excluded_stride() const { return divide_up(num_items, 32); }
};

/// How many lanes take one of the items that packs of 16 bytes make: as many as leave none idle, or all.
template <typename T>
inline int64_t lanes_of(int64_t hidden_size) {
  const int64_t packs = hidden_size / kPack<T>;
  int64_t lanes = 4;
  while (lanes < 32 && lanes < packs && (packs % lanes != 0 || packs % (2 * lanes) == 0)) lanes *= 2;
  return lanes;
}

/// visit(integral_constant) with them.
template <typename T, typename Visit>
void with_lanes(int64_t hidden_size, Visit visit) {
  const int64_t lanes = lanes_of<T>(hidden_size);
  if (lanes == 4) return visit(std::integral_constant<int, 4>());
  if (lanes == 8) return visit(std::integral_constant<int, 8>());
  if (lanes == 16) return visit(std::integral_constant<int, 16>());
  visit(std::integral_constant<int, 32>());
}

template <typename T>
bool is_packed(const ItemQuery<T>& query) {
  return query.hidden_size % kPack<T> == 0 && is_aligned(query.items);
}

inline unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(blocks); }

}  // namespace limbeck::cuda
