#include "retrieve/item_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/retrieve.h"
#include "ops/gemm.h"
#include "ops/top_k.h"

namespace limbeck {
namespace {

constexpr int64_t kItems = kQuantisedItems, kWordDimensions = kQuantisedWordDimensions;
constexpr float kLevels = 127;  // of an int8, without −128: the range is even
// Bounds are computed for this many blocks at a time; they stay in the first-level cache.
constexpr int64_t kBlocksAtOnce = 64;
// Of a batch, this many queries meet so many blocks at a time: both, and the bounds, stay in the second-level cache.
constexpr int64_t kBatchQueries = 84, kBatchBlocks = 16;
// With fewer items, or when an eighth of them is wanted, scoring all is as fast.
constexpr int64_t kMinItems = 1024, kMinItemsPerResult = 8;
constexpr int64_t kMaxCandidates = 4096, kMaxResults = kMaxCandidates / 4;
// Up to it, sums of products are whole numbers that fp32 holds.
constexpr int64_t kMaxHiddenSize = 1024;
// Relative to |query|·|item|·(hidden_size + 8): the rounding of fp32 scores and of the bounds themselves.
constexpr float kRounding = 2.5e-7f;

int64_t words_of(int64_t hidden_size) { return (hidden_size + kWordDimensions - 1) / kWordDimensions; }

float norm(const float* x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return static_cast<float>(std::sqrt(sum));
}

float largest_magnitude(const float* x, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

/// How many blocks are searched at a time: few while the threshold is low, as most items are then candidates.
int64_t blocks_after(int64_t first, int64_t most) { return std::clamp(first, kQuantisedWordBlocks, most); }

int64_t words_of_bits(int64_t num_blocks) { return (num_blocks + kQuantisedWordBlocks - 1) / kQuantisedWordBlocks; }

/// One query on its way through the table: the items that may be among the best k. query.threshold rises with them.
struct Search {
  const uint8_t* excluded;
  const int32_t *own, *own_end;  // excluded too, ascending
  int64_t k;
  QuantisedQuery& query;
  // Candidates, ascending by id, with what their scores are not above and not below. [kMaxCandidates]
  int32_t* ids;
  float *upper, *lower;
  int64_t count = 0;
  int64_t count_to_raise = 0;  // at so many candidates raising the threshold is worth its time
  bool has_too_many = false;   // the bounds do not tell the items apart

  Search(Context& context, const uint8_t* excluded, const int32_t* own, const int32_t* own_end, int64_t k,
         QuantisedQuery& query)
      : excluded(excluded),
        own(own),
        own_end(own_end),
        k(k),
        query(query),
        ids(context.scratch.allocate<int32_t>(kMaxCandidates)),
        upper(context.scratch.allocate<float>(kMaxCandidates)),
        lower(context.scratch.allocate<float>(kMaxCandidates)) {}

  void take(const uint64_t* above, int64_t num_blocks, int64_t first_id, const float* bounds, const float* scales);
  void raise_threshold();
  void drop_those_behind();
  int64_t score(int64_t hidden_size, const float* vector, const float* items, float* scratch, int32_t* best_ids,
                float* best_scores);
};

/// Takes the items whose bit is set, of those from first_id on. bounds, scales [num_blocks·16]
void Search::take(const uint64_t* above, int64_t num_blocks, int64_t first_id, const float* bounds,
                  const float* scales) {
  const int64_t num_words = words_of_bits(num_blocks);
  uint64_t any = 0;
  for (int64_t w = 0; w < num_words; ++w) any |= above[w];
  if (any == 0 || has_too_many) return;
  if (count + num_blocks * kItems > kMaxCandidates) {
    drop_those_behind();
    has_too_many = count > kMaxCandidates / 2;
    if (has_too_many) return;
  }
  for (int64_t w = 0; w < num_words; ++w) {
    for (uint64_t bits = above[w]; bits != 0; bits &= bits - 1) {
      const int64_t i = 64 * w + __builtin_ctzll(bits), id = first_id + i;
      while (own != own_end && *own < id) ++own;
      const bool is_own = own != own_end && *own == id;
      ids[count] = static_cast<int32_t>(id);
      upper[count] = bounds[i];
      lower[count] = bounds[i] - 2 * scales[i] * query.margin;
      count += !is_own && excluded[id] == 0;
    }
  }
  if (count >= count_to_raise) raise_threshold();
}

/// To what k candidates surely are above.
void Search::raise_threshold() {
  query.threshold = cpu_kernels().exceeded_by(lower, count, k, query.threshold);
  count_to_raise = count + count / 8 + 16;
}

void Search::drop_those_behind() {
  raise_threshold();
  const float threshold = query.threshold;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    ids[kept] = ids[i];
    lower[kept] = lower[i];
    upper[kept] = upper[i];
    kept += upper[kept] > threshold;
  }
  count = kept;
}

/// Scores the candidates, with the bits of a product with all items; they ascend by id, as top_k() wants ties.
///   vector: the query [hidden_size]; items [num_items, hidden_size]; scratch [kMaxCandidates]; returns how many of k
int64_t Search::score(int64_t hidden_size, const float* vector, const float* items, float* scratch, int32_t* best_ids,
                      float* best_scores) {
  drop_those_behind();
  cpu_kernels().gather_dots(hidden_size, vector, items, ids, count, scratch);
  const int64_t found = limbeck::top_k(scratch, nullptr, count, k, best_ids, best_scores);
  for (int64_t i = 0; i < found; ++i) best_ids[i] = ids[best_ids[i]];
  return found;
}

}  // namespace

void ItemTable::append(const float* vectors, int64_t count) {
  const int64_t d = hidden_size_, words = words_of(d), first = num_items_, total = first + count;
  const int64_t num_blocks = (total + kItems - 1) / kItems;
  vectors_.insert(vectors_.end(), vectors, vectors + count * d);
  quantised_.resize(static_cast<size_t>(num_blocks * words * kItems * kWordDimensions), 0);
  scales_.resize(static_cast<size_t>(num_blocks * kItems), std::numeric_limits<float>::quiet_NaN());
  for (int64_t item = first; item < total; ++item) {
    const float* row = vectors + (item - first) * d;
    const float scale = largest_magnitude(row, d) / kLevels;
    const float length = norm(row, d);
    if (!std::isfinite(scale) || !std::isfinite(length)) {
      worst_error_ = std::numeric_limits<float>::infinity();
      continue;
    }
    scales_[static_cast<size_t>(item)] = scale;
    if (scale == 0) continue;  // a zero vector: bound and score are 0
    uint8_t* block = quantised_.data() + item / kItems * words * kItems * kWordDimensions;
    double square = 0;
    for (int64_t j = 0; j < d; ++j) {
      const float level = std::clamp(std::nearbyint(row[j] / scale), -kLevels, kLevels);
      block[(j / kWordDimensions * kItems + item % kItems) * kWordDimensions + j % kWordDimensions] =
          static_cast<uint8_t>(static_cast<int32_t>(level) + kQuantisedOffset);
      const double error = static_cast<double>(row[j]) / static_cast<double>(scale) - static_cast<double>(level);
      square += error * error;
    }
    worst_error_ = std::max(worst_error_, static_cast<float>(std::sqrt(square)));
    worst_length_ = std::max(worst_length_, length / scale);
    largest_scale_ = std::max(largest_scale_, scale);
  }
  num_items_ = total;
}

bool ItemTable::is_searched_by_bounds(int64_t k) const {
  return num_items_ >= kMinItems && k * kMinItemsPerResult <= num_items_ && hidden_size_ <= kMaxHiddenSize &&
         k <= kMaxResults;
}

/// Whether the bounds hold for the query. values [4·words]
bool ItemTable::quantise(const float* query, int8_t* values, QuantisedQuery& quantised) const {
  const int64_t d = hidden_size_, words = words_of(d);
  const float largest = largest_magnitude(query, d), length = norm(query, d);
  if (!std::isfinite(worst_error_) || !std::isfinite(length) || largest < 1e-30f) return false;
  const float scale = largest / static_cast<float>(cpu_kernels().quantised_query_max);
  int32_t value_sum = 0;
  double square = 0;
  for (int64_t j = 0; j < d; ++j) {
    const auto value = static_cast<int32_t>(std::nearbyint(query[j] / scale));
    values[j] = static_cast<int8_t>(value);
    value_sum += value;
    const double error = static_cast<double>(query[j]) - static_cast<double>(scale) * static_cast<double>(value);
    square += error * error;
  }
  std::fill(values + d, values + words * kWordDimensions, int8_t{0});
  // With query = scale·values + e and item = levels + f (an item of scale 1), query·item − scale·values·levels is
  // (query − e)·f + e·item.
  const auto query_error = static_cast<float>(std::sqrt(square));
  const float margin = (length + query_error) * worst_error_ + query_error * worst_length_ +
                       kRounding * static_cast<float>(d + 8) * length * worst_length_;
  const float largest_bound = largest_scale_ * ((length + query_error) * (worst_length_ + worst_error_) + margin);
  quantised = {values, words, value_sum, scale, margin, -std::numeric_limits<float>::infinity()};
  return std::isfinite(2 * largest_bound);
}

int64_t ItemTable::top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids,
                         float* scores) const {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t d = hidden_size_, words = words_of(d), num_blocks = (num_items_ + kItems - 1) / kItems;
  const Arena::Scope scope(context.scratch);
  if (is_searched_by_bounds(k)) {
    QuantisedQuery quantised;
    if (quantise(query, context.scratch.allocate<int8_t>(words * kWordDimensions), quantised)) {
      Search search(context, excluded, nullptr, nullptr, k, quantised);
      float* bounds = context.scratch.allocate<float>(std::max(kBlocksAtOnce * kItems, kMaxCandidates));
      uint64_t* above = context.scratch.allocate<uint64_t>(words_of_bits(kBlocksAtOnce));
      for (int64_t first = 0, blocks = 0; first < num_blocks && !search.has_too_many; first += blocks) {
        blocks = std::min(blocks_after(first, kBlocksAtOnce), num_blocks - first);
        const float* scales = scales_.data() + first * kItems;
        kernels.quantised_bounds(quantised_.data() + first * words * kItems * kWordDimensions, scales, blocks,
                                 quantised, bounds, above);
        search.take(above, blocks, first * kItems, bounds, scales);
      }
      if (!search.has_too_many) return search.score(d, query, vectors_.data(), bounds, ids, scores);
    }
  }
  float* all = context.scratch.allocate<float>(num_items_);
  gemm(context, 1, num_items_, d, {query, d, 1}, {vectors_.data(), 1, d}, nullptr, all, num_items_, false);
  return limbeck::top_k(all, excluded, num_items_, k, ids, scores);
}

void ItemTable::top_k_of_batch(Context& context, const float* queries, int64_t num_queries, const uint8_t* excluded,
                               const int32_t* own, const int32_t* own_offsets, int64_t k, int32_t* ids, float* scores,
                               int64_t* counts) const {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t d = hidden_size_, words = words_of(d), num_blocks = (num_items_ + kItems - 1) / kItems;
  std::fill(counts, counts + num_queries, -1);
  if (!is_searched_by_bounds(k)) return;
  for (int64_t begin = 0, end = 0; begin < num_queries; begin = end) {
    const Arena::Scope scope(context.scratch);
    const int64_t rows = kernels.quantised_rows, most = std::min(kBatchQueries, num_queries - begin);
    int32_t* panels =
        context.scratch.allocate<int32_t>((most + rows - 1) / rows * rows * words);  // [panels, words, rows]
    int8_t* values = context.scratch.allocate<int8_t>(most * words * kWordDimensions);
    float* bounds = context.scratch.allocate<float>(std::max(most * kBatchBlocks * kItems, kMaxCandidates));
    uint64_t* above = context.scratch.allocate<uint64_t>(most * words_of_bits(kBatchBlocks));
    QuantisedQuery quantised[kBatchQueries];
    int64_t places[kBatchQueries];  // the query of each search
    std::vector<Search> searches;
    searches.reserve(static_cast<size_t>(most));
    for (; end < num_queries && end < begin + most; ++end) {
      const auto s = static_cast<int64_t>(searches.size());
      int8_t* words_of_query = values + s * words * kWordDimensions;
      if (!quantise(queries + end * d, words_of_query, quantised[s])) continue;
      int32_t* panel = panels + s / rows * rows * words + s % rows;
      for (int64_t w = 0; w < words; ++w) {
        std::memcpy(panel + w * rows, words_of_query + w * kWordDimensions, sizeof(int32_t));
      }
      places[s] = end;
      searches.emplace_back(context, excluded, own + own_offsets[end], own + own_offsets[end + 1], k, quantised[s]);
    }
    const auto count = static_cast<int64_t>(searches.size());
    for (int64_t first = 0, blocks = 0; first < num_blocks; first += blocks) {
      blocks = std::min(blocks_after(first, kBatchBlocks), num_blocks - first);
      const float* scales = scales_.data() + first * kItems;
      kernels.quantised_bounds_of_batch(quantised, count, panels,
                                        quantised_.data() + first * words * kItems * kWordDimensions, scales, blocks,
                                        bounds, above);
      for (int64_t s = 0; s < count; ++s) {
        searches[static_cast<size_t>(s)].take(above + s * words_of_bits(blocks), blocks, first * kItems,
                                              bounds + s * blocks * kItems, scales);
      }
    }
    for (int64_t s = 0; s < count; ++s) {
      Search& search = searches[static_cast<size_t>(s)];
      const int64_t place = places[s];
      if (search.has_too_many) continue;
      counts[place] =
          search.score(d, queries + place * d, vectors_.data(), bounds, ids + place * k, scores + place * k);
    }
  }
}

}  // namespace limbeck
