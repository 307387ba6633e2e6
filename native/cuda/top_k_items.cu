#include <algorithm>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_rows.h"
#include "cuda/select_best.h"
#include "cuda/top_k_items.h"

namespace limbeck::cuda {
namespace {

constexpr int64_t kMaxItems = 1024;  // k
constexpr int kMaxScannedQueries = 8;
constexpr int64_t kMaxScannedWidth = 1024;  // eight queries in fp32 fill 32 KiB of shared memory
constexpr int kTileItems = 64;              // scanned by a warp at a time
constexpr int kScanThreads = 256;
constexpr int kScanBlocks = 3;  // of a multiprocessor: 96 KiB of requests are in flight
constexpr int64_t kScoreBytes = int64_t{256} << 20;

__device__ __forceinline__ bool is_excluded(const uint32_t* bits, int64_t item) {
  return bits && (__ldg(bits + item / 32) >> (item % 32) & 1) != 0;
}

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
    for (int q = 0; q < kQueries; ++q) {
#pragma unroll
      for (int mask = kLanes / 2; mask >= kItems; mask /= 2) {
#pragma unroll
        for (int i = 0; i < kItems; ++i) sums[q][i] += __shfl_xor_sync(0xffffffffu, sums[q][i], mask);
      }
      // Each exchange halves the items that a lane has sums of, and doubles the lanes that its sums are over.
#pragma unroll
      for (int half = kItems / 2; half > 0; half /= 2) {
        const bool is_upper = (lane & half) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
          const float kept = is_upper ? sums[q][i + half] : sums[q][i];
          const float given = is_upper ? sums[q][i] : sums[q][i + half];
          sums[q][i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
        }
      }
      scores[q] = sums[q][0];
    }
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

__device__ __forceinline__ void write_item(int32_t* indices, float* scores, int64_t at, Entry entry) {
  indices[at] = entry == 0 ? -1 : index_of_entry(entry);
  scores[at] = entry == 0 ? kMinusInfinity : score_of(key_of_entry(entry));
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

// One query: each block scores a chunk of the items, which stream through shared memory, and lists its best k; the last
// block to finish makes one list of all.

constexpr int kChunkThreads = 128;
constexpr int kChunkWarps = kChunkThreads / 32;
constexpr int kChunkStages = 3;           // of the stream: two are under way while one is used
constexpr int kChunkBlocks = 3;           // of a multiprocessor
constexpr int64_t kMaxChunkItems = 3072;  // 12 KiB of keys
constexpr int64_t kMaxLists = 4096;       // 32 for each thread of the last block
constexpr int64_t kMaxListed = 64;        // k: some lists of k then fit in shared memory

template <int kItems>
constexpr size_t kStreamBytes = size_t{kChunkWarps} * kChunkStages * kItems * 32 * 16;

struct ListMemory {
  alignas(16) Entry bests[kChunkThreads];
  Entry sorted[kMaxListed];
  int lists[kMaxListed];
  Entry bound;
  uint32_t count;
  bool is_last;
};

/// memory.bound = the k-th best of the best entries of threads, or of pairs of them where k is small, of which no two
/// are equal; 1 where fewer have one. `count` is 0 after it.
__device__ inline void bound_entries(ListMemory& memory, Entry best, int k) {
  const int thread = static_cast<int>(threadIdx.x), lanes = k <= kChunkThreads / 4 ? 2 : 1;
  const int num_groups = kChunkThreads / lanes;
  const Entry neighbour = __shfl_xor_sync(0xffffffffu, best, 1);
  if (lanes == 2 && neighbour > best) best = neighbour;
  if (thread % lanes == 0) memory.bests[thread / lanes] = best;
  if (thread == 0) {
    memory.bound = 1;
    memory.count = 0;
  }
  __syncthreads();
  if (thread < num_groups) {
    const Entry own = memory.bests[thread];
    int rank = 0;
#pragma unroll 8
    for (int i = 0; i < num_groups; i += 2) {
      Entry pair[2];
      EntrySource::unpack_pair(load_16(memory.bests + i), pair);
      rank += (pair[0] > own ? 1 : 0) + (pair[1] > own ? 1 : 0);
    }
    if (rank == k - 1 && own > 0) memory.bound = own;
  }
  __syncthreads();
}

/// Keys of the items [first, first + count) → keys [count] in shared memory; all threads of the block. prepare() stages
/// the query when the first items are on their way.
///   stream [kStreamBytes] shared memory
template <typename T, int kLanes, int kItems, typename Prepare>
__device__ __forceinline__ void score_chunk(const ItemScorer<T, kLanes>& scorer, const float* query, int64_t first,
                                            int count, char* stream, uint32_t* keys, Prepare prepare) {
  using Step = ScanStep<kLanes, kItems>;
  constexpr int W = kPack<T>, kStageBytes = kItems * 32 * 16;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int num_steps = (count + Step::kStep - 1) / Step::kStep;
  const int num_packs = scorer.num_packs, group = lane / kLanes * kItems;
  // Each lane reads only what it copied itself.
  char* const own = stream + warp * kChunkStages * kStageBytes + lane * 16;
  const T* const items = scorer.items + first * scorer.hidden_size;

  int next_step = warp, next_pack = lane % kLanes, next_stage = 0;
  const auto start_next = [&] {
    if (next_step < num_steps) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = next_step * Step::kStep + group + i;
        const bool is_valid = item < count && next_pack < num_packs;
        cp_async_16(own + next_stage * kStageBytes + i * 512,
                    is_valid ? items + static_cast<int64_t>(item) * scorer.hidden_size + next_pack * W : items,
                    is_valid);
      }
      next_pack += kLanes;
      if (next_pack - lane % kLanes >= num_packs) {
        next_pack = lane % kLanes;
        next_step += kChunkWarps;
      }
      next_stage = next_stage + 1 == kChunkStages ? 0 : next_stage + 1;
    }
    cp_async_commit();
  };
  for (int s = 0; s < kChunkStages; ++s) start_next();
  prepare();

  int stage = 0;
  for (int step = warp; step < num_steps; step += kChunkWarps) {
    float sums[1][kItems] = {};
    for (int p = lane % kLanes; p - lane % kLanes < num_packs; p += kLanes) {
      cp_async_wait<kChunkStages - 1>();
      uint4 raw[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) raw[i] = load_16(own + stage * kStageBytes + i * 512);
      if (p < num_packs) scorer.add_products(raw, p, query, sums);
      start_next();
      stage = stage + 1 == kChunkStages ? 0 : stage + 1;
    }
    float score[1];
    scorer.finish(lane, sums, score);
    const int item = step * Step::kStep + Step::item_of_lane(lane);
    if (Step::is_first_with_item(lane) && item < count) keys[item] = key_of(score[0]);
  }
  __syncthreads();
}

/// One block a chunk.   lists [gridDim.x, k] =, indices, scores [k] =
///   num_finished [1] 0 before and after
template <typename T, int kLanes>
__global__ void __launch_bounds__(kChunkThreads, kChunkBlocks)
    list_items_kernel(ItemScorer<T, kLanes> scorer, const T* query, const uint32_t* excluded,
                      const int32_t* excluded_items, const int32_t* num_excluded, int chunk_items, int k, Entry* lists,
                      unsigned* num_finished, int32_t* indices, float* scores) {
  using Step = StepOf<kLanes, 1>;
  constexpr int kItems = Step::kStep * kLanes / 32;
  LIMBECK_SHARED_MEMORY(char, shared);
  __shared__ ListMemory memory;
  uint32_t* const keys = reinterpret_cast<uint32_t*>(shared + kStreamBytes<kItems>);
  float* const staged = reinterpret_cast<float*>(keys + chunk_items);
  Entry* const candidates = reinterpret_cast<Entry*>(shared);  // where the stream was
  const int thread = static_cast<int>(threadIdx.x);

  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk_items;
  const int64_t left = scorer.num_items - first;
  const int count = left < chunk_items ? static_cast<int>(left) : chunk_items;
  int num_left_out = 0;
  int64_t left_out = -1;
  score_chunk<T, kLanes, kItems>(scorer, staged, first, count, shared, keys, [&] {
    if (num_excluded != nullptr) num_left_out = *num_excluded;
    stage_queries<1>(query, 1, scorer.hidden_size, scorer.num_packs * kPack<T>, staged);
    if (thread < num_left_out) left_out = excluded_items[thread];  // on its way while items are scored
  });

  const auto leave_out = [&](int64_t item) {
    if (item >= first && item < first + count) keys[item - first] = 0;
  };
  leave_out(left_out);
  for (int i = thread + kChunkThreads; i < num_left_out; i += kChunkThreads) leave_out(excluded_items[i]);
  __syncthreads();
  const auto entry_at = [&](int i) {
    return keys[i] == 0 || is_excluded(excluded, first + i) ? Entry{0} : entry_of(keys[i], first + i);
  };
  Entry best = 0;
  for (int i = thread; i < count; i += kChunkThreads) {
    const Entry entry = entry_at(i);
    best = entry > best ? entry : best;
  }
  bound_entries(memory, best, k);
  if (best >= memory.bound) {
    for (int i = thread; i < count; i += kChunkThreads) {
      const Entry entry = entry_at(i);
      if (entry >= memory.bound) candidates[atomicAdd(&memory.count, 1u)] = entry;
    }
  }
  __syncthreads();
  const int found = static_cast<int>(memory.count);
  Entry* const list = lists + static_cast<int64_t>(blockIdx.x) * k;
  for (int i = thread; i < found; i += kChunkThreads) {
    const int rank = rank_among(candidates, found, candidates[i]);
    if (rank < k) list[rank] = candidates[i];
  }
  for (int rank = found + thread; rank < k; rank += kChunkThreads) list[rank] = 0;

  __threadfence();
  __syncthreads();
  if (thread == 0) memory.is_last = atomicAdd(num_finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!memory.is_last) return;
  __threadfence();

  // The k lists whose first entries are best hold the best k.
  if (thread == 0) *num_finished = 0;
  const int num_lists = static_cast<int>(gridDim.x);
  best = 0;
#pragma unroll 4
  for (int i = thread; i < num_lists; i += kChunkThreads) {
    const Entry entry = __ldcg(lists + static_cast<int64_t>(i) * k);
    best = entry > best ? entry : best;
  }
  bound_entries(memory, best, k);
  if (best >= memory.bound) {
    for (int i = thread; i < num_lists; i += kChunkThreads) {
      const Entry entry = __ldcg(lists + static_cast<int64_t>(i) * k);
      if (entry >= memory.bound) candidates[atomicAdd(&memory.count, 1u)] = entry;
    }
  }
  for (int rank = thread; rank < k; rank += kChunkThreads) memory.sorted[rank] = 0;
  __syncthreads();
  const int num_firsts = static_cast<int>(memory.count), num_best = num_firsts < k ? num_firsts : k;
  for (int i = thread; i < num_firsts; i += kChunkThreads) {
    const int rank = rank_among(candidates, num_firsts, candidates[i]);
    if (rank < k) memory.lists[rank] = index_of_entry(candidates[i]) / chunk_items;
  }
  __syncthreads();
  // Entry p of the list whose first is number r has r + p better ones.
  for (int i = thread; i < num_best * k; i += kChunkThreads) {
    const int r = i / k, p = i - r * k;
    if (r + p < k) {
      candidates[r * k - r * (r - 1) / 2 + p] = __ldcg(lists + static_cast<int64_t>(memory.lists[r]) * k + p);
    }
  }
  __syncthreads();
  const int num_candidates = num_best * k - num_best * (num_best - 1) / 2;
  for (int i = thread; i < num_candidates; i += kChunkThreads) {
    const Entry entry = candidates[i];
    if (entry == 0) continue;
    const int rank = rank_among(candidates, num_candidates, entry);
    if (rank < k) memory.sorted[rank] = entry;
  }
  __syncthreads();
  for (int rank = thread; rank < k; rank += kChunkThreads) write_item(indices, scores, rank, memory.sorted[rank]);
}

unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(blocks); }

/// bits [⌈num_items/32⌉] |=
__global__ void __launch_bounds__(kSelectThreads)
    set_excluded_kernel(const int32_t* excluded_items, const int32_t* num_excluded, int64_t num_items, uint32_t* bits) {
  for (int i = static_cast<int>(threadIdx.x); i < *num_excluded; i += kSelectThreads) {
    const int32_t item = excluded_items[i];
    if (item >= 0 && item < num_items) atomicOr(bits + item / 32, 1u << (item % 32));
  }
}

template <typename T>
struct ItemQuery {
  const T* queries;
  const T* items;
  const uint32_t* excluded;
  int64_t num_queries, num_items, hidden_size, k;
  int64_t excluded_stride() const { return divide_up(num_items, 32); }
};

/// How many items each block lists: so many that all blocks run at once, or all of a few turns.
int64_t chunk_size(const Context& context, int64_t num_items) {
  const int64_t blocks = int64_t{kChunkBlocks} * context.num_multiprocessors;
  const int64_t turns = divide_up(num_items, blocks * kMaxChunkItems);
  return std::max<int64_t>(kChunkThreads, divide_up(divide_up(num_items, turns * blocks), 32) * 32);
}

/// One query over aligned items.
template <typename T, int kLanes>
void list_items(Context& context, const ItemQuery<T>& query, int64_t chunk_items, const GraphQuery& graph,
                int32_t* indices, float* scores) {
  using Scorer = ItemScorer<T, kLanes>;
  constexpr int kItems = StepOf<kLanes, 1>::kStep * kLanes / 32;
  static_assert(kStreamBytes<kItems> >= kMaxChunkItems * sizeof(Entry));
  static_assert(kStreamBytes<kItems> >= kMaxLists / kChunkThreads * kMaxListed * sizeof(Entry));
  static_assert(kStreamBytes<kItems> >= kMaxListed * (kMaxListed + 1) / 2 * sizeof(Entry));
  const Scorer scorer{query.items, query.num_items, static_cast<int>(query.hidden_size),
                      static_cast<int>(divide_up(query.hidden_size, Scorer::W))};
  const int64_t num_lists = divide_up(query.num_items, chunk_items);
  Entry* lists = context.arena.allocate<Entry>(num_lists * query.k);
  unsigned* num_finished = graph.num_finished;
  if (num_finished == nullptr) {
    num_finished = context.arena.allocate<unsigned>(1);
    set_zero(context, num_finished, 1);
  }
  const size_t shared_bytes =
      kStreamBytes<kItems> +
      sizeof(float) * (static_cast<size_t>(chunk_items) + static_cast<size_t>(scorer.num_packs * Scorer::W));
  launch(context, list_items_kernel<T, kLanes>, dim3(grid_size(num_lists)), dim3(kChunkThreads), shared_bytes, scorer,
         query.queries, query.excluded, graph.excluded_items, graph.num_excluded, static_cast<int>(chunk_items),
         static_cast<int>(query.k), lists, num_finished, indices, scores);
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

/// How many lanes take one of the items that packs of 16 bytes make: as many as leave none idle, or all.
template <typename T>
int64_t lanes_of(int64_t hidden_size) {
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

template <typename T>
void scan_items(Context& context, const ItemQuery<T>& query, int32_t* indices, float* scores) {
  if (!is_packed(query)) return scan_items<T, 8, false>(context, query, indices, scores);
  with_lanes<T>(query.hidden_size,
                [&](auto lanes) { scan_items<T, decltype(lanes)::value, true>(context, query, indices, scores); });
}

/// False, with nothing done, where lists are not the way.
template <typename T>
bool list_items(Context& context, const ItemQuery<T>& query, const GraphQuery& graph, int32_t* indices, float* scores) {
  if (query.num_queries != 1 || query.num_items == 0 || query.k > kMaxListed || query.hidden_size > kMaxScannedWidth ||
      !is_packed(query)) {
    return false;
  }
  const int64_t chunk_items = chunk_size(context, query.num_items);
  if (divide_up(query.num_items, chunk_items) > kMaxLists) return false;
  with_lanes<T>(query.hidden_size, [&](auto lanes) {
    list_items<T, decltype(lanes)::value>(context, query, chunk_items, graph, indices, scores);
  });
  return true;
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
                 int64_t chunk_items, const GraphQuery& graph) {
  if (k < 1 || k > kMaxItems) {
    throw Error("ERR_INVALID_ARGUMENT",
                "k must be in [1, " + std::to_string(kMaxItems) + "], got " + std::to_string(k));
  }
  if (num_queries == 0) return;
  DeviceArena::Scope scope(context.arena);
  ItemQuery<T> query{queries, items, excluded, num_queries, num_items, hidden_size, k};
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
                               int32_t*, float*, int64_t, const GraphQuery&);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
