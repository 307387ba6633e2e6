#include <algorithm>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/gemm.h"
#include "cuda/item_scorer.h"
#include "cuda/top_k_items.h"
#include "cuda/top_k_list.h"

namespace limbeck::cuda {
namespace {

constexpr int64_t kMaxItems = 1024;  // k
constexpr int kMaxScannedQueries = 8;
constexpr int kScanThreads = 256;
constexpr int kScanBlocks = 3;  // of a multiprocessor: 96 KiB of requests are in flight
constexpr int64_t kScoreBytes = int64_t{256} << 20;

/// Scores of the items from `first` on, a multiple of kWidth.
struct ScoreSource {
  static constexpr int kWidth = 4;
  const float* scores;
  const uint32_t* excluded;  // or null
  int64_t first;

  __device__ __forceinline__ uint4 load(int64_t i) const { return load_16(scores + i); }
  __device__ __forceinline__ void entries(const uint4& raw, int64_t i, Entry (&out)[kWidth]) const {
    float x[kWidth];
    unpack<float>(raw, x);
    const int64_t item = first + i;
    const uint32_t bits = excluded ? __ldg(excluded + item / 32) >> (item % 32) : 0;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out[j] = bits >> j & 1 ? 0 : entry_of(key_of(x[j]), item + j);
  }
};

/// The best key of each tile; 0 where all its items are left out.
struct TileSource {
  static constexpr int kWidth = 4;
  const uint32_t* keys;

  __device__ __forceinline__ uint4 load(int64_t i) const { return load_16(keys + i); }
  __device__ __forceinline__ void entries(const uint4& raw, int64_t i, Entry (&out)[kWidth]) const {
    const uint32_t keys_of_pack[kWidth] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out[j] = keys_of_pack[j] == 0 ? 0 : entry_of(keys_of_pack[j], i + j);
  }
};

/// The best key of each tile of items, for each query.   keys [num_queries, key_stride] =
template <typename T, int kLanes, int kQueries, bool kIsPacked>
__global__ void __launch_bounds__(kScanThreads, kQueries == 1 ? kScanBlocks : 2)
    scan_tiles_kernel(ItemScorer<T, kLanes> scorer, const T* queries, int num_queries, const uint32_t* excluded,
                      int64_t excluded_stride, int64_t num_tiles, int64_t key_stride, uint32_t* keys) {
  using Step = StepOf<kLanes, kQueries>;
  LIMBECK_SHARED_MEMORY(float, staged);
  stage_queries<kQueries>(queries, num_queries, scorer.hidden_size, scorer.num_packs * kPack<T>, staged);
  constexpr int kWarps = kScanThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t num_warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; tile < num_tiles;
       tile += num_warps) {
    uint32_t best[kQueries] = {};
    for (int step = 0; step < kTileItems; step += Step::kStep) {
      const int64_t first = tile * kTileItems + step;
      float scores[kQueries];
      scorer.template score<kIsPacked>(Step(), first, staged, lane, scores);
      const int64_t item = first + Step::item_of_lane(lane);
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (item >= scorer.num_items || q >= num_queries) continue;
        if (excluded && is_excluded(excluded + q * excluded_stride, item)) continue;
        const uint32_t key = key_of(scores[q]);
        best[q] = key > best[q] ? key : best[q];
      }
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, best[q], mask);
        best[q] = other > best[q] ? other : best[q];
      }
      if (lane == 0 && q < num_queries) keys[q * key_stride + tile] = best[q];
    }
  }
}

/// The k tiles that can hold the best k items: an item of another has k better ones, one in each of these tiles.
///   tiles [num_queries, k] =, −1 where there are fewer
__global__ void __launch_bounds__(kSelectThreads)
    select_tiles_kernel(const uint32_t* keys, int64_t key_stride, int64_t num_tiles, int k, int32_t* tiles) {
  __shared__ SelectMemory memory;
  const int64_t q = blockIdx.x;
  select_best(memory, TileSource{keys + q * key_stride}, num_tiles, k, nullptr,
              [&](int rank, Entry entry) { tiles[q * k + rank] = entry == 0 ? -1 : index_of_entry(entry); });
}

/// All items of those tiles, scored again as they were.   grid (⌈k / warps⌉, num_queries); entries [num_queries,
/// k·kTileItems] =
template <typename T, int kLanes, bool kIsPacked>
__global__ void __launch_bounds__(kScanThreads)
    score_tiles_kernel(ItemScorer<T, kLanes> scorer, const T* queries, const uint32_t* excluded,
                       int64_t excluded_stride, const int32_t* tiles, int k, Entry* entries) {
  using Step = StepOf<kLanes, 1>;
  LIMBECK_SHARED_MEMORY(float, staged);
  const int64_t q = blockIdx.y;
  stage_queries<1>(queries + q * scorer.hidden_size, 1, scorer.hidden_size, scorer.num_packs * kPack<T>, staged);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (kScanThreads / 32) + threadIdx.x / 32;
  if (t >= k) return;
  const int64_t tile = tiles[q * k + t];
  Entry* out = entries + (q * k + t) * kTileItems;
  for (int step = 0; step < kTileItems; step += Step::kStep) {
    // Tile −1 lies before the first item, and its scores are dropped.
    const int64_t first = tile * kTileItems + step, item = first + Step::item_of_lane(lane);
    Entry entry = 0;
    if (tile >= 0) {
      float scores[1];
      scorer.template score<kIsPacked>(Step(), first, staged, lane, scores);
      if (item < scorer.num_items && !(excluded && is_excluded(excluded + q * excluded_stride, item))) {
        entry = entry_of(key_of(scores[0]), item);
      }
    }
    if (Step::is_first_with_item(lane)) out[step + Step::item_of_lane(lane)] = entry;
  }
}

/// One block a query.   entries [num_queries, stride], indices, scores [num_queries, k] =
__global__ void __launch_bounds__(kSelectThreads)
    select_entries_kernel(const Entry* entries, int64_t stride, int64_t count, int k, int32_t* indices, float* scores) {
  __shared__ SelectMemory memory;
  const int64_t q = blockIdx.x;
  select_best(memory, EntrySource{entries + q * stride}, count, k, nullptr,
              [&](int rank, Entry entry) { write_item(indices, scores, q * k + rank, entry); });
}

/// The best k of a chunk of items, one block a query.   scores [·, stride]; best [·, best_stride] = from best_first on
__global__ void __launch_bounds__(kSelectThreads)
    select_scores_kernel(const float* scores, int64_t stride, const uint32_t* excluded, int64_t excluded_stride,
                         int64_t first_item, int64_t count, int k, Entry* best, int64_t best_stride) {
  __shared__ SelectMemory memory;
  const int64_t q = blockIdx.x;
  const ScoreSource source{scores + q * stride, excluded ? excluded + q * excluded_stride : nullptr, first_item};
  select_best(memory, source, count, k, nullptr, [&](int rank, Entry entry) { best[q * best_stride + rank] = entry; });
}

/// bits [⌈num_items/32⌉] |=
__global__ void __launch_bounds__(kSelectThreads)
    set_excluded_kernel(const int32_t* excluded_items, const int32_t* num_excluded, int64_t num_items, uint32_t* bits) {
  for (int i = static_cast<int>(threadIdx.x); i < *num_excluded; i += kSelectThreads) {
    const int32_t item = excluded_items[i];
    if (item >= 0 && item < num_items) atomicOr(bits + item / 32, 1u << (item % 32));
  }
}

/// Few queries: the items are read once, past the scores' memory.
template <typename T, int kLanes, bool kIsPacked>
void scan_items(Context& context, const ItemQuery<T>& query, int32_t* indices, float* scores) {
  using Scorer = ItemScorer<T, kLanes>;
  const Scorer scorer{query.items, query.num_items, static_cast<int>(query.hidden_size),
                      static_cast<int>(divide_up(query.hidden_size, Scorer::W))};
  const int64_t num_queries = query.num_queries, num_tiles = divide_up(query.num_items, kTileItems);
  const int k = static_cast<int>(query.k);
  const int64_t key_stride = divide_up(num_tiles, 4) * 4, num_entries = k * kTileItems;
  uint32_t* keys = context.arena.allocate<uint32_t>(num_queries * key_stride);
  int32_t* tiles = context.arena.allocate<int32_t>(num_queries * k);
  Entry* entries = context.arena.allocate<Entry>(num_queries * num_entries);
  const size_t query_bytes = sizeof(float) * static_cast<size_t>(scorer.num_packs * Scorer::W);

  // Blocks that fit the device take the tiles in turns. How many there are changes nothing in the result.
  const int64_t blocks =
      std::min(divide_up(num_tiles, kScanThreads / 32), int64_t{kScanBlocks} * context.num_multiprocessors);
  const auto scan = [&](auto queries) {
    constexpr int kQueries = decltype(queries)::value;
    launch(context, scan_tiles_kernel<T, kLanes, kQueries, kIsPacked>, dim3(grid_size(blocks)), dim3(kScanThreads),
           query_bytes * kQueries, scorer, query.queries, static_cast<int>(num_queries), query.excluded,
           query.excluded_stride(), num_tiles, key_stride, keys);
  };
  if (num_queries == 1) {
    scan(std::integral_constant<int, 1>());
  } else {
    scan(std::integral_constant<int, kMaxScannedQueries>());
  }
  launch(context, select_tiles_kernel, dim3(grid_size(num_queries)), dim3(kSelectThreads), 0, keys, key_stride,
         num_tiles, k, tiles);
  launch(context, score_tiles_kernel<T, kLanes, kIsPacked>,
         dim3(grid_size(divide_up(k, kScanThreads / 32)), grid_size(num_queries)), dim3(kScanThreads), query_bytes,
         scorer, query.queries, query.excluded, query.excluded_stride(), tiles, k, entries);
  launch(context, select_entries_kernel, dim3(grid_size(num_queries)), dim3(kSelectThreads), 0, entries, num_entries,
         num_entries, k, indices, scores);
}

template <typename T>
void scan_items(Context& context, const ItemQuery<T>& query, int32_t* indices, float* scores) {
  if (!is_packed(query)) return scan_items<T, 8, false>(context, query, indices, scores);
  with_lanes<T>(query.hidden_size,
                [&](auto lanes) { scan_items<T, decltype(lanes)::value, true>(context, query, indices, scores); });
}

/// Many queries: a product for each chunk of items, then the best of the chunks' best.
template <typename T>
void multiply_items(Context& context, const ItemQuery<T>& query, int64_t chunk_items, int32_t* indices, float* scores) {
  const int64_t num_queries = query.num_queries, width = query.hidden_size, k = query.k;
  if (chunk_items <= 0) {
    chunk_items = std::max<int64_t>(16384, kScoreBytes / static_cast<int64_t>(sizeof(float)) / num_queries);
  }
  chunk_items = std::max<int64_t>(64, divide_up(std::min(chunk_items, query.num_items), 64) * 64);
  const int64_t num_chunks = divide_up(query.num_items, chunk_items), best_stride = divide_up(num_chunks * k, 2) * 2;
  float* chunk = context.arena.allocate<float>(num_queries * chunk_items);
  Entry* best = context.arena.allocate<Entry>(num_queries * best_stride);
  for (int64_t c = 0; c < num_chunks; ++c) {
    const int64_t first = c * chunk_items, count = std::min(chunk_items, query.num_items - first);
    gemm<T, float>(context, {num_queries, count, width, false, true, width, width, chunk_items}, query.queries,
                   query.items + first * width, nullptr, nullptr, chunk);
    launch(context, select_scores_kernel, dim3(grid_size(num_queries)), dim3(kSelectThreads), 0, chunk, chunk_items,
           query.excluded, query.excluded_stride(), first, count, static_cast<int>(k), best + c * k, best_stride);
  }
  launch(context, select_entries_kernel, dim3(grid_size(num_queries)), dim3(kSelectThreads), 0, best, best_stride,
         num_chunks * k, static_cast<int>(k), indices, scores);
}

}  // namespace

template <typename T>
void top_k_items(Context& context, const T* queries, const T* items, const uint32_t* excluded, int64_t num_queries,
                 int64_t num_items, int64_t hidden_size, int64_t k, int32_t* indices, float* scores,
                 int64_t chunk_items, const GraphQuery& graph, const QuantisedItems& quantised) {
  if (k < 1 || k > kMaxItems) {
    throw Error("ERR_INVALID_ARGUMENT",
                "k must be in [1, " + std::to_string(kMaxItems) + "], got " + std::to_string(k));
  }
  if (num_queries == 0) return;
  DeviceArena::Scope scope(context.arena);
  ItemQuery<T> query{queries, items, excluded, num_queries, num_items, hidden_size, k, quantised};
  if (list_items(context, query, graph, indices, scores)) return;
  if (graph.num_excluded != nullptr) {
    if (num_queries != 1) throw Error("ERR_INVALID_ARGUMENT", "Expected one query with a list of excluded items.");
    const int64_t words = divide_up(num_items, 32);
    uint32_t* bits = context.arena.allocate<uint32_t>(words);
    if (excluded != nullptr) {
      copy_on_device(context, bits, excluded, words);
    } else {
      set_zero(context, bits, words);
    }
    launch(context, set_excluded_kernel, dim3(1), dim3(kSelectThreads), 0, graph.excluded_items, graph.num_excluded,
           num_items, bits);
    query.excluded = bits;
  }
  if (num_queries <= kMaxScannedQueries && hidden_size <= kMaxScannedWidth) {
    scan_items(context, query, indices, scores);
  } else {
    multiply_items(context, query, chunk_items, indices, scores);
  }
}

#define LIMBECK_INSTANTIATE(T)                                                                                    \
  template void top_k_items<T>(Context&, const T*, const T*, const uint32_t*, int64_t, int64_t, int64_t, int64_t, \
                               int32_t*, float*, int64_t, const GraphQuery&, const QuantisedItems&);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
