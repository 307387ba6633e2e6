#include "cuda/top_k_list.h"

namespace limbeck::cuda {
namespace {

// One query: each block takes a chunk of the items, which stream through shared memory, and lists its best k; the last
// block to finish makes one list of all. Where there are quantised items, those stream, half of the bytes or less, and
// of the items themselves only those are read whose score may be among the best.

constexpr int kChunkThreads = 128;
constexpr int kChunkWarps = kChunkThreads / 32;
constexpr int kChunkBlocks = 3;                       // of a multiprocessor
constexpr int64_t kMaxChunkItems = 3072;              // 12 KiB of keys
constexpr int64_t kMaxLists = 4096;                   // 32 for each thread of the last block
constexpr int64_t kMaxListed = kMaxQuantisedK;        // k: some lists of k then fit in shared memory
constexpr int kItemStages = 3, kQuantisedStages = 5;  // of a stream: all but one are under way while one is used
constexpr int kQuantisedStep = 4;                     // quantised items whose loads a lane has in one stage

template <int kItems, int kStages>
constexpr size_t kStreamBytes = size_t{kChunkWarps} * kStages * kItems * 32 * 16;

struct ListMemory {
  alignas(16) Entry bests[kChunkThreads];
  Entry sorted[kMaxListed];
  int lists[kMaxListed];
  Entry bound;
  uint32_t count, num_candidates;
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
#pragma unroll 4
    for (int i = 0; i < num_groups; i += 2) {
      Entry pair[2];
      EntrySource::unpack_pair(load_16(memory.bests + i), pair);
      rank += (pair[0] > own ? 1 : 0) + (pair[1] > own ? 1 : 0);
    }
    if (rank == k - 1 && own > 0) memory.bound = own;
  }
  __syncthreads();
}

/// Rows of 16-byte packs that a block reads once, from device memory through shared memory: kLanes lanes take the same
/// kItems rows, whose loads are in flight together.
template <int kLanes, int kItems, int kStages>
class RowStream {
  using Step = ScanStep<kLanes, kItems>;
  static constexpr int kStageBytes = kItems * 32 * 16;

 public:
  /// The first loads are on their way then.
  ///   rows [count, row_bytes], row_bytes a multiple of 16; memory [kStreamBytes<kItems, kStages>] shared
  __device__ __forceinline__ RowStream(const void* rows, int count, int row_bytes, char* memory)
      : rows_(static_cast<const char*>(rows)),
        count_(count),
        row_bytes_(row_bytes),
        num_packs_(row_bytes / 16),
        num_steps_((count + Step::kStep - 1) / Step::kStep),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        // Each lane reads only what it copied itself.
        own_(memory + warp_ * kStages * kStageBytes + lane_ * 16),
        next_step_(warp_),
        next_pack_(lane_ % kLanes) {
#pragma unroll 1
    for (int s = 0; s < kStages; ++s) start_next();
  }

  /// Sums() is of kItems rows; add(raw [kItems], p, sums) adds their packs p, and finish(lane, sums) is the sum over
  /// the lanes, of the row that is this lane's, for write(row, sum). No copy is under way then.
  template <typename Sums, typename Add, typename Finish, typename Write>
  __device__ __forceinline__ void run(Add add, Finish finish, Write write) {
    int stage = 0;
    for (int step = warp_; step < num_steps_; step += kChunkWarps) {
      Sums sums{};
      for (int p = lane_ % kLanes; p - lane_ % kLanes < num_packs_; p += kLanes) {
        cp_async_wait<kStages - 1>();
        uint4 raw[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) raw[i] = load_16(own_ + stage * kStageBytes + i * 512);
        if (p < num_packs_) add(raw, p, sums);
        start_next();
        stage = stage + 1 == kStages ? 0 : stage + 1;
      }
      const auto sum = finish(lane_, sums);
      const int row = step * Step::kStep + Step::item_of_lane(lane_);
      if (Step::is_first_with_item(lane_) && row < count_) write(row, sum);
    }
    cp_async_wait<0>();
  }

 private:
  __device__ __forceinline__ void start_next() {
    if (next_step_ < num_steps_) {
      const int group = next_step_ * Step::kStep + lane_ / kLanes * kItems;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int row = group + i;
        const bool is_valid = row < count_ && next_pack_ < num_packs_;
        cp_async_16(own_ + next_stage_ * kStageBytes + i * 512,
                    is_valid ? rows_ + static_cast<int64_t>(row) * row_bytes_ + next_pack_ * 16 : rows_, is_valid);
      }
      next_pack_ += kLanes;
      if (next_pack_ - lane_ % kLanes >= num_packs_) {
        next_pack_ = lane_ % kLanes;
        next_step_ += kChunkWarps;
      }
      next_stage_ = next_stage_ + 1 == kStages ? 0 : next_stage_ + 1;
    }
    cp_async_commit();
  }

  const char* rows_;
  int count_, row_bytes_, num_packs_, num_steps_, lane_, warp_;
  char* own_;
  int next_step_, next_pack_, next_stage_ = 0;
};

/// What a request leaves out, of a chunk of items: those on a list, and those whose bit is set.
class LeftOut {
 public:
  __device__ __forceinline__ LeftOut(const uint32_t* bits, int64_t first, int count)
      : bits_(bits), first_(first), count_(count) {}
  /// Starts to read the list.
  __device__ __forceinline__ void begin(const int32_t* items, const int32_t* num_items) {
    if (num_items == nullptr) return;
    items_ = items;
    num_items_ = *num_items;
    if (static_cast<int>(threadIdx.x) < num_items_) own_ = items[threadIdx.x];
  }
  /// mark(i) for those left out; all threads, which may then read what it wrote.
  template <typename Mark>
  __device__ __forceinline__ void mark_all(Mark mark) const {
    const auto mark_one = [&](int64_t item) {
      if (item >= first_ && item < first_ + count_) mark(static_cast<int>(item - first_));
    };
    mark_one(own_);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) + kChunkThreads; i < num_items_; i += kChunkThreads) mark_one(items_[i]);
    if (bits_ != nullptr) {
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < count_; i += kChunkThreads) {
        if (is_excluded(bits_, first_ + i)) mark(i);
      }
    }
    __syncthreads();
  }

 private:
  const uint32_t* bits_;
  int64_t first_;
  int count_, num_items_ = 0;
  const int32_t* items_ = nullptr;
  int64_t own_ = -1;
};

/// Of the entries [count], those that can be among the best k → kept, which they do not overlap; returns how many.
__device__ inline int keep_best(ListMemory& memory, const Entry* entries, int count, int k, Entry* kept) {
  Entry best = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kChunkThreads) {
    best = entries[i] > best ? entries[i] : best;
  }
  bound_entries(memory, best, k);
  if (best >= memory.bound) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kChunkThreads) {
      if (entries[i] >= memory.bound) kept[atomicAdd(&memory.count, 1u)] = entries[i];
    }
  }
  __syncthreads();
  return static_cast<int>(memory.count);
}

/// What a block needs of its chunk.
template <typename T, int kLanes>
struct Chunk {
  ItemScorer<T, kLanes> scorer;
  int64_t first;
  int count, k;
  char* stream;     // shared, as the rest
  uint32_t* words;  // [count] of its items, twice as many where there are quantised ones
  float* query;     // [num_packs·W]
  LeftOut left_out;
};

/// The chunk's entries that can be among the best k → where the stream was; returns how many. All items are scored.
/// prepare() stages the query when the first items are on their way.
template <int kItems, typename T, int kLanes, typename Prepare>
__device__ __forceinline__ int find_by_scores(Chunk<T, kLanes>& chunk, ListMemory& memory, Prepare prepare) {
  struct Sums {
    float values[1][kItems];
  };
  const ItemScorer<T, kLanes>& scorer = chunk.scorer;
  const int thread = static_cast<int>(threadIdx.x), count = chunk.count;
  uint32_t* const keys = chunk.words;
  RowStream<kLanes, kItems, kItemStages> stream(scorer.items + chunk.first * scorer.hidden_size, count,
                                                scorer.num_packs * 16, chunk.stream);
  prepare();
  stream.template run<Sums>(
      [&](const uint4(&raw)[kItems], int p, Sums& sums) { scorer.add_products(raw, p, chunk.query, sums.values); },
      [&](int lane, Sums& sums) { return sum_over_lanes<kLanes>(lane, sums.values[0]); },
      [&](int row, float score) { keys[row] = key_of(score); });
  __syncthreads();
  chunk.left_out.mark_all([&](int i) { keys[i] = 0; });

  Entry* const candidates = reinterpret_cast<Entry*>(chunk.stream);
  const auto entry_at = [&](int i) { return keys[i] == 0 ? Entry{0} : entry_of(keys[i], chunk.first + i); };
  Entry best = 0;
  for (int i = thread; i < count; i += kChunkThreads) {
    const Entry entry = entry_at(i);
    best = entry > best ? entry : best;
  }
  bound_entries(memory, best, chunk.k);
  if (best >= memory.bound) {
    for (int i = thread; i < count; i += kChunkThreads) {
      const Entry entry = entry_at(i);
      if (entry >= memory.bound) candidates[atomicAdd(&memory.count, 1u)] = entry;
    }
  }
  __syncthreads();
  return static_cast<int>(memory.count);
}

/// A query in 16 bits, q ≈ scale·(256·high + low), for products with quantised items. Bounds are in units of `scale`,
/// so that they neither overflow nor vanish.
struct QuantisedQuery {
  static constexpr float kLevels = 127 * 256 + 127;
  // With the limits of items, no product and no sum of them leaves the range of normal numbers.
  static constexpr float kLeast = 1e-15f, kMost = 1e15f;

  uint32_t *high, *low;  // [packs of 16 bytes] in shared memory
  /// A score lies within margin · the scale of the item of scale of the item · product; negative: the query is out of
  /// range.
  float margin;
};

/// query [hidden_size] in shared memory; all threads of the block. Others see the words after a barrier.
__device__ inline void quantise_query(const float* query, int hidden_size, int num_packs, QuantisedQuery& out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest = 0, sum = 0;
#pragma unroll 1
  for (int c = lane; c < hidden_size; c += 32) {
    const float magnitude = fabsf(query[c]);
    largest = fmaxf(largest, magnitude);
    sum += magnitude;  // with a NaN, if there is one
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
    sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  }
  if (!(largest >= QuantisedQuery::kLeast && sum <= QuantisedQuery::kMost)) {
    out.margin = -1;
    return;
  }
  const float inverse_scale = QuantisedQuery::kLevels / largest;
#pragma unroll 1
  for (int w = static_cast<int>(threadIdx.x); w < num_packs * 4; w += kChunkThreads) {
    uint32_t high = 0, low = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int c = w * 4 + j;
      const int value = c < hidden_size ? static_cast<int>(rintf(query[c] * inverse_scale)) : 0;
      const int upper = (value + 128) >> 8;  // in [−127, 127]; the rest in [−128, 127]
      high |= (static_cast<uint32_t>(upper) & 255u) << (8 * j);
      low |= (static_cast<uint32_t>(value - upper * 256) & 255u) << (8 * j);
    }
    out.high[w] = high;
    out.low[w] = low;
  }
  // With query = scale·(values + e) and item = scale'·(levels + f), where |e| and |f| are at most a half and a little,
  // query·item/(scale·scale') − values·levels = values·f + e·(levels + f). What fp32 rounds, in the score and in the
  // bounds, is less than (hidden_size + 8)·2⁻²⁴ of |values|·127 in sum.
  const auto d = static_cast<float>(hidden_size);
  const float values = sum * inverse_scale + d;
  out.margin = values * (0.5f + QuantisedItems::kLevels * (d + 32) * 2.4e-7f) + 0.52f * QuantisedItems::kLevels * d;
}

/// The same as find_by_scores() by way of the bounds that quantised items give; *entries = in shared memory. −1, with
/// nothing done but what prepare() did, where the query has none.
template <typename T, int kLanes, typename Prepare>
__device__ __forceinline__ int find_by_bounds(Chunk<T, kLanes>& chunk, const QuantisedItems& quantised, int row_bytes,
                                              QuantisedQuery& query, ListMemory& memory, Prepare prepare,
                                              const Entry** entries) {
  constexpr int kItems = kQuantisedStep, kLanesOfPacks = kLanes * kPack<T> / 16;
  constexpr int kRowLanes = kLanesOfPacks > 4 ? kLanesOfPacks : 4;
  struct Sums {
    int high[kItems], low[kItems];
  };
  const ItemScorer<T, kLanes>& scorer = chunk.scorer;
  const int thread = static_cast<int>(threadIdx.x), count = chunk.count;
  int* const products = reinterpret_cast<int*>(chunk.words);
  float* const scales = reinterpret_cast<float*>(chunk.words) + (count + 3) / 4 * 4;
  // They belong to the first copies of the stream.
#pragma unroll 1
  for (int i = thread * 4; i < count; i += kChunkThreads * 4) {
    cp_async_16(scales + i, quantised.scales + chunk.first + i, true);
  }
  RowStream<kRowLanes, kItems, kQuantisedStages> stream(quantised.levels + chunk.first * row_bytes, count, row_bytes,
                                                        chunk.stream);
  prepare();
  quantise_query(chunk.query, scorer.hidden_size, row_bytes / 16, query);
  __syncthreads();
  if (query.margin < 0) {
    cp_async_wait<0>();
    __syncthreads();
    return -1;
  }
  stream.template run<Sums>(
      [&](const uint4(&raw)[kItems], int p, Sums& sums) {
        const uint4 high = load_16(query.high + p * 4), low = load_16(query.low + p * 4);
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          const auto add = [&](uint32_t levels, uint32_t high_values, uint32_t low_values) {
            sums.high[i] = __dp4a(static_cast<int>(levels), static_cast<int>(high_values), sums.high[i]);
            sums.low[i] = __dp4a(static_cast<int>(levels), static_cast<int>(low_values), sums.low[i]);
          };
          add(raw[i].x, high.x, low.x);
          add(raw[i].y, high.y, low.y);
          add(raw[i].z, high.z, low.z);
          add(raw[i].w, high.w, low.w);
        }
      },
      [&](int lane, Sums& sums) {
#pragma unroll
        for (int i = 0; i < kItems; ++i) sums.low[i] += sums.high[i] * 256;
        return sum_over_lanes<kRowLanes>(lane, sums.low);
      },
      [&](int row, int product) { products[row] = product; });
  __syncthreads();
  constexpr float kLeftOut = -1;
  chunk.left_out.mark_all([&](int i) { scales[i] = kLeftOut; });

  // k items reach the k-th best lower bound; what cannot is not among the best.
  const float margin = query.margin;
  Entry best = 0;
#pragma unroll 4
  for (int i = thread; i < count; i += kChunkThreads) {
    const float scale = scales[i], lower = scale * (static_cast<float>(products[i]) - margin);
    const Entry entry = scale == kLeftOut ? 0 : entry_of(key_of(lower), chunk.first + i);
    best = entry > best ? entry : best;
  }
  bound_entries(memory, best, chunk.k);
  int* const found = reinterpret_cast<int*>(chunk.stream);  // [kMaxChunkItems], and then the entries
  const uint32_t least = key_of_entry(memory.bound);
#pragma unroll 4
  for (int i = thread; i < count; i += kChunkThreads) {
    const float scale = scales[i], upper = scale * (static_cast<float>(products[i]) + margin);
    if (key_of(upper) >= least && scale != kLeftOut) found[atomicAdd(&memory.count, 1u)] = i;
  }
  __syncthreads();

  const int num_found = static_cast<int>(memory.count);
  Entry* const scored = reinterpret_cast<Entry*>(chunk.stream + kMaxChunkItems * sizeof(int));
  // A few rows a warp: the first turn takes as many as are found as a rule.
  constexpr int kRescored = kLanes <= 8 ? 2 : 4;
  using Step = ScanStep<kLanes, kRescored>;
  const int lane = thread % 32;
  for (int begin = thread / 32 * Step::kStep; begin < num_found; begin += kChunkWarps * Step::kStep) {
    int64_t items[kRescored];
#pragma unroll
    for (int i = 0; i < kRescored; ++i) {
      const int at = begin + lane / kLanes * kRescored + i;
      items[i] = chunk.first + found[at < num_found ? at : begin];
    }
    float sums[1][kRescored] = {}, score[1];
    for (int p = lane % kLanes; p < scorer.num_packs; p += kLanes) {
      uint4 raw[kRescored];
#pragma unroll
      for (int i = 0; i < kRescored; ++i) raw[i] = scorer.template pack_of<true>(items[i], p);
      scorer.add_products(raw, p, chunk.query, sums);
    }
    scorer.finish(lane, sums, score);
    const int at = begin + Step::item_of_lane(lane);
    if (Step::is_first_with_item(lane) && at < num_found) {
      scored[at] = entry_of(key_of(score[0]), chunk.first + found[at]);
    }
  }
  __syncthreads();
  *entries = scored;
  if (num_found <= kChunkThreads) return num_found;
  // Hardly any bound told items apart.
  Entry* const kept = reinterpret_cast<Entry*>(chunk.words);
  *entries = kept;
  return keep_best(memory, scored, num_found, chunk.k, kept);
}

/// One block a chunk.   lists [gridDim.x, k] =, indices, scores [k] =
///   num_finished [1] 0 before and after
template <typename T, int kLanes, bool kIsQuantised>
__global__ void __launch_bounds__(kChunkThreads, kChunkBlocks)
    list_items_kernel(ItemScorer<T, kLanes> scorer, QuantisedItems quantised, int row_bytes, const T* query,
                      const uint32_t* excluded, const int32_t* excluded_items, const int32_t* num_excluded,
                      int chunk_items, int k, Entry* lists, unsigned* num_finished, int32_t* indices, float* scores) {
  constexpr int kItems = StepOf<kLanes, 1>::kStep * kLanes / 32;
  constexpr size_t kStream =
      kIsQuantised ? kStreamBytes<kQuantisedStep, kQuantisedStages> : kStreamBytes<kItems, kItemStages>;
  LIMBECK_SHARED_MEMORY(char, shared);
  __shared__ ListMemory memory;
  Entry* const candidates = reinterpret_cast<Entry*>(shared);  // where the stream was
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk_items, left = scorer.num_items - first;
  const int count = left < chunk_items ? static_cast<int>(left) : chunk_items;
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared + kStream);
  float* const staged = reinterpret_cast<float*>(words + (kIsQuantised ? 2 : 1) * chunk_items);
  Chunk<T, kLanes> chunk{scorer, first, count, k, shared, words, staged, LeftOut(excluded, first, count)};
  const auto prepare = [&] {
    chunk.left_out.begin(excluded_items, num_excluded);  // on its way while items are scored
    stage_queries<1>(query, 1, scorer.hidden_size, scorer.num_packs * kPack<T>, staged);
  };

  const Entry* entries = candidates;
  int found = -1;
  if constexpr (kIsQuantised) {
    uint32_t* const query_words = reinterpret_cast<uint32_t*>(staged + scorer.num_packs * kPack<T>);
    QuantisedQuery quantised_query{query_words, query_words + row_bytes / 4, 0};
    found = find_by_bounds(chunk, quantised, row_bytes, quantised_query, memory, prepare, &entries);
    if (found < 0) {
      constexpr int kFewItems = kItems < kQuantisedStep ? kItems : kQuantisedStep;
      found = find_by_scores<kFewItems>(chunk, memory, [] {});
    }
  } else {
    found = find_by_scores<kItems>(chunk, memory, prepare);
  }
  Entry* const list = lists + static_cast<int64_t>(blockIdx.x) * k;
#pragma unroll 1
  for (int i = thread; i < found; i += kChunkThreads) {
    const int rank = rank_among(entries, found, entries[i]);
    if (rank < k) list[rank] = entries[i];
  }
  for (int rank = found + thread; rank < k; rank += kChunkThreads) list[rank] = 0;

  __threadfence();
  __syncthreads();
  if (thread == 0) memory.is_last = atomicAdd(num_finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!memory.is_last) return;
  __threadfence();

  // The k lists whose first entries are best hold the best k.
  if (thread == 0) {
    *num_finished = 0;
    memory.num_candidates = 0;
  }
  const int num_lists = static_cast<int>(gridDim.x);
  Entry best = 0;
#pragma unroll 4
  for (int i = thread; i < num_lists; i += kChunkThreads) {
    const Entry entry = __ldcg(lists + static_cast<int64_t>(i) * k);
    best = entry > best ? entry : best;
  }
  bound_entries(memory, best, k);
  const Entry bound = memory.bound;
  if (best >= bound) {
    for (int i = thread; i < num_lists; i += kChunkThreads) {
      const Entry entry = __ldcg(lists + static_cast<int64_t>(i) * k);
      if (entry >= bound) candidates[atomicAdd(&memory.count, 1u)] = entry;
    }
  }
  for (int rank = thread; rank < k; rank += kChunkThreads) memory.sorted[rank] = 0;
  __syncthreads();
  const int num_firsts = static_cast<int>(memory.count), num_best = num_firsts < k ? num_firsts : k;
#pragma unroll 1
  for (int i = thread; i < num_firsts; i += kChunkThreads) {
    const int rank = rank_among(candidates, num_firsts, candidates[i]);
    if (rank < k) memory.lists[rank] = index_of_entry(candidates[i]) / chunk_items;
  }
  __syncthreads();
  // Entry p of the list whose first is number r has r + p better ones; and k firsts reach the bound.
  constexpr int kUnroll = 4;
  for (int begin = thread; begin < num_best * k; begin += kUnroll * kChunkThreads) {
    Entry listed[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = begin + u * kChunkThreads, r = i / k, p = i - r * k;
      listed[u] = i < num_best * k && r + p < k ? __ldcg(lists + static_cast<int64_t>(memory.lists[r]) * k + p) : 0;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (listed[u] >= bound) candidates[atomicAdd(&memory.num_candidates, 1u)] = listed[u];
    }
  }
  __syncthreads();
  const int num_candidates = static_cast<int>(memory.num_candidates);
#pragma unroll 1
  for (int i = thread; i < num_candidates; i += kChunkThreads) {
    const int rank = rank_among(candidates, num_candidates, candidates[i]);
    if (rank < k) memory.sorted[rank] = candidates[i];
  }
  __syncthreads();
  for (int rank = thread; rank < k; rank += kChunkThreads) write_item(indices, scores, rank, memory.sorted[rank]);
}

/// How many items each block lists: so many that all blocks run at once, or all of a few turns.
int64_t chunk_size(const Context& context, int64_t num_items) {
  const int64_t blocks = int64_t{kChunkBlocks} * context.num_multiprocessors;
  const int64_t turns = divide_up(num_items, blocks * kMaxChunkItems);
  return std::max<int64_t>(kChunkThreads, divide_up(divide_up(num_items, turns * blocks), 32) * 32);
}

/// Over aligned items.
template <typename T, int kLanes, bool kIsQuantised>
void list_chunks(Context& context, const ItemQuery<T>& query, int64_t chunk_items, const GraphQuery& graph,
                 int32_t* indices, float* scores) {
  using Scorer = ItemScorer<T, kLanes>;
  constexpr int kItems = StepOf<kLanes, 1>::kStep * kLanes / 32;
  constexpr size_t kQuantisedBytes = kStreamBytes<kQuantisedStep, kQuantisedStages>;
  constexpr size_t kItemBytes = kStreamBytes<kItems, kItemStages>,
                   kStream = kIsQuantised ? kQuantisedBytes : kItemBytes;
  static_assert(kStream >= kMaxChunkItems * sizeof(Entry));
  static_assert(kStream >= kMaxLists / kChunkThreads * kMaxListed * sizeof(Entry));
  static_assert(kStream >= kMaxListed * (kMaxListed + 1) / 2 * sizeof(Entry));
  static_assert(kQuantisedBytes >= kMaxChunkItems * (sizeof(int) + sizeof(Entry)));
  static_assert(kQuantisedBytes >= kStreamBytes<std::min(kItems, kQuantisedStep), kItemStages>);
  const Scorer scorer{query.items, query.num_items, static_cast<int>(query.hidden_size),
                      static_cast<int>(divide_up(query.hidden_size, Scorer::W))};
  const int64_t num_lists = divide_up(query.num_items, chunk_items);
  const int64_t row_bytes = QuantisedItems::row_bytes(query.hidden_size);
  Entry* lists = context.arena.allocate<Entry>(num_lists * query.k);
  unsigned* num_finished = graph.num_finished;
  if (num_finished == nullptr) {
    num_finished = context.arena.allocate<unsigned>(1);
    set_zero(context, num_finished, 1);
  }
  const size_t words = static_cast<size_t>(chunk_items * (kIsQuantised ? 2 : 1) + scorer.num_packs * Scorer::W +
                                           (kIsQuantised ? row_bytes / 2 : 0));
  launch(context, list_items_kernel<T, kLanes, kIsQuantised>, dim3(grid_size(num_lists)), dim3(kChunkThreads),
         kStream + sizeof(uint32_t) * words, scorer, query.quantised, static_cast<int>(row_bytes), query.queries,
         query.excluded, graph.excluded_items, graph.num_excluded, static_cast<int>(chunk_items),
         static_cast<int>(query.k), lists, num_finished, indices, scores);
}

}  // namespace

template <typename T>
bool list_items(Context& context, const ItemQuery<T>& query, const GraphQuery& graph, int32_t* indices, float* scores) {
  if (query.num_queries != 1 || query.num_items == 0 || query.k > kMaxListed || query.hidden_size > kMaxScannedWidth ||
      !is_packed(query)) {
    return false;
  }
  const int64_t chunk_items = chunk_size(context, query.num_items);
  if (divide_up(query.num_items, chunk_items) > kMaxLists) return false;
  with_lanes<T>(query.hidden_size, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    if (query.quantised.levels != nullptr) {
      list_chunks<T, kLanes, true>(context, query, chunk_items, graph, indices, scores);
    } else {
      list_chunks<T, kLanes, false>(context, query, chunk_items, graph, indices, scores);
    }
  });
  return true;
}

template bool list_items<float>(Context&, const ItemQuery<float>&, const GraphQuery&, int32_t*, float*);
template bool list_items<bf16>(Context&, const ItemQuery<bf16>&, const GraphQuery&, int32_t*, float*);

}  // namespace limbeck::cuda
