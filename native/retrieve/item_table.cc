#include "retrieve/item_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/retrieve.h"
#include "ops/gemm.h"
#include "ops/top_k.h"

namespace limbeck {
namespace {

constexpr int64_t kItems = kQuantisedItems, kWordDimensions = kQuantisedWordDimensions;
constexpr float kLevels = 127;  // of an int8, without −128: the range is even
// Bounds are computed for this many blocks at a time; they stay in the first-level cache. At most 64.
constexpr int64_t kBlocksAtOnce = 64;
// Of a batch, this many queries meet so many blocks at a time: both, and the products, stay in the second-level cache.
constexpr int64_t kBatchQueries = 84, kBatchBlocks = 16;
// With fewer items, or when an eighth of them is wanted, scoring all is as fast.
constexpr int64_t kMinItems = 1024, kMinItemsPerResult = 8;
// Candidates kept before those that fell behind are dropped.
constexpr size_t kMaxCandidates = 4096;
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

}  // namespace

void ItemTable::append(const float* vectors, int64_t count) {
  const int64_t d = hidden_size_, words = words_of(d), first = num_items_, total = first + count;
  const int64_t num_blocks = (total + kItems - 1) / kItems;
  vectors_.insert(vectors_.end(), vectors, vectors + count * d);
  quantised_.resize(static_cast<size_t>(num_blocks * words * kItems * kWordDimensions), 0);
  scales_.resize(static_cast<size_t>(num_blocks * kItems), 0.0f);
  scores_.resize(static_cast<size_t>(total));
  candidate_ids_.reserve(kMaxCandidates);
  for (int64_t item = first; item < total; ++item) {
    const float* row = vectors + (item - first) * d;
    const float scale = largest_magnitude(row, d) / kLevels;
    const float length = norm(row, d);
    if (!std::isfinite(scale) || !std::isfinite(length)) {
      worst_error_ = std::numeric_limits<float>::infinity();
      continue;
    }
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
    scales_[static_cast<size_t>(item)] = scale;
    worst_error_ = std::max(worst_error_, static_cast<float>(std::sqrt(square)));
    worst_length_ = std::max(worst_length_, length / scale);
  }
  num_items_ = total;
}

bool ItemTable::Search::is_excluded(int64_t id) const {
  return excluded[id] != 0 || std::binary_search(own, own_end, static_cast<int32_t>(id));
}

void ItemTable::Search::drop_those_behind() {
  const float least = best_lower.front();
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                  [&](const Candidate& candidate) { return candidate.upper < least; }),
                   candidates.end());
}

/// Takes items of the blocks in `found` whose bound is above the threshold. upper, scales [count], of the items from
/// first_id on.
void ItemTable::Search::add(uint64_t found, int64_t first_id, int64_t count, const float* upper, const float* scales) {
  const auto find_greater = cpu_kernels().find_greater;
  for (; found != 0 && !has_too_many; found &= found - 1) {
    const int64_t begin = __builtin_ctzll(found) * kItems, end = std::min(begin + kItems, count);
    for (int64_t i = find_greater(upper, begin, end, threshold); i < end;
         i = find_greater(upper, i + 1, end, threshold)) {
      if (is_excluded(first_id + i)) continue;
      if (candidates.size() == kMaxCandidates) {
        drop_those_behind();
        has_too_many = candidates.size() > kMaxCandidates / 2;
        if (has_too_many) return;
      }
      candidates.push_back({static_cast<int32_t>(first_id + i), upper[i]});
      const float lower = upper[i] - 2 * scales[i] * query.margin;
      if (static_cast<int64_t>(best_lower.size()) < k) {
        best_lower.push_back(lower);
        std::push_heap(best_lower.begin(), best_lower.end(), std::greater<float>());
      } else if (lower > best_lower.front()) {
        std::pop_heap(best_lower.begin(), best_lower.end(), std::greater<float>());
        best_lower.back() = lower;
        std::push_heap(best_lower.begin(), best_lower.end(), std::greater<float>());
      }
      if (static_cast<int64_t>(best_lower.size()) == k) {
        threshold = std::nextafter(best_lower.front(), -std::numeric_limits<float>::infinity());
      }
    }
  }
}

bool ItemTable::is_searched_by_bounds(int64_t k) const {
  return num_items_ >= kMinItems && k * kMinItemsPerResult <= num_items_ && hidden_size_ <= kMaxHiddenSize &&
         k <= static_cast<int64_t>(kMaxCandidates) / 4;
}

/// Quantises the query; whether the bounds hold for it.
bool ItemTable::begin_search(const float* query, const uint8_t* excluded, const int32_t* own, const int32_t* own_end,
                             int64_t k, Search& search) const {
  const int64_t d = hidden_size_, words = words_of(d);
  const float largest = largest_magnitude(query, d), length = norm(query, d);
  if (!std::isfinite(worst_error_) || !std::isfinite(length) || largest < 1e-30f) return false;
  const float scale = largest / static_cast<float>(kQuantisedQueryMax);
  search.values.resize(static_cast<size_t>(words * kWordDimensions), 0);
  int32_t value_sum = 0;
  double square = 0;
  for (int64_t j = 0; j < d; ++j) {
    const auto value = static_cast<int32_t>(std::nearbyint(query[j] / scale));
    search.values[static_cast<size_t>(j)] = static_cast<int8_t>(value);
    value_sum += value;
    const double error = static_cast<double>(query[j]) - static_cast<double>(scale) * static_cast<double>(value);
    square += error * error;
  }
  // With query = scale·values + e and item = levels + f (an item of scale 1), query·item − scale·values·levels is
  // (query − e)·f + e·item.
  const auto query_error = static_cast<float>(std::sqrt(square));
  const float margin = (length + query_error) * worst_error_ + query_error * worst_length_ +
                       kRounding * static_cast<float>(d + 8) * length * worst_length_;
  search.query = {search.values.data(), words, value_sum, scale, margin};
  search.candidates.reserve(kMaxCandidates);
  search.candidates.clear();
  search.best_lower.reserve(static_cast<size_t>(k));
  search.best_lower.clear();
  search.threshold = -std::numeric_limits<float>::infinity();
  search.excluded = excluded;
  search.own = own;
  search.own_end = own_end;
  search.k = k;
  search.has_too_many = false;
  return true;
}

/// Scores the candidates, with the bits of a product with all items; they ascend by id, as top_k() wants ties.
int64_t ItemTable::end_search(Search& search, const float* query, int32_t* ids, float* scores) {
  if (static_cast<int64_t>(search.best_lower.size()) == search.k) search.drop_those_behind();
  const auto count = static_cast<int64_t>(search.candidates.size());
  candidate_ids_.resize(search.candidates.size());
  for (size_t i = 0; i < candidate_ids_.size(); ++i) candidate_ids_[i] = search.candidates[i].id;
  cpu_kernels().gather_dots(hidden_size_, query, vectors_.data(), candidate_ids_.data(), count, scores_.data());
  const int64_t found = limbeck::top_k(scores_.data(), nullptr, count, search.k, ids, scores);
  for (int64_t i = 0; i < found; ++i) ids[i] = candidate_ids_[static_cast<size_t>(ids[i])];
  return found;
}

int64_t ItemTable::top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids,
                         float* scores) {
  const int64_t d = hidden_size_, num_blocks = (num_items_ + kItems - 1) / kItems;
  if (searches_.empty()) searches_.resize(1);
  Search& search = searches_.front();
  if (is_searched_by_bounds(k) && begin_search(query, excluded, nullptr, nullptr, k, search)) {
    const int64_t block_bytes = words_of(d) * kItems * kWordDimensions;
    alignas(64) float upper[kBlocksAtOnce * kItems];
    for (int64_t first = 0; first < num_blocks && !search.has_too_many; first += kBlocksAtOnce) {
      const int64_t blocks = std::min(kBlocksAtOnce, num_blocks - first), id = first * kItems;
      const uint64_t found = cpu_kernels().quantised_bounds(
          quantised_.data() + first * block_bytes, scales_.data() + id, blocks, search.query, search.threshold, upper);
      search.add(found, id, std::min(blocks * kItems, num_items_ - id), upper, scales_.data() + id);
    }
    if (!search.has_too_many) return end_search(search, query, ids, scores);
  }
  gemm(context, 1, num_items_, d, {query, d, 1}, {vectors_.data(), 1, d}, nullptr, scores_.data(), num_items_, false);
  return limbeck::top_k(scores_.data(), excluded, num_items_, k, ids, scores);
}

void ItemTable::top_k_of_batch(Context& context, const float* queries, int64_t num_queries, const uint8_t* excluded,
                               const int32_t* own, const int32_t* own_offsets, int64_t k, int32_t* ids, float* scores,
                               int64_t* counts) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t d = hidden_size_, words = words_of(d), num_blocks = (num_items_ + kItems - 1) / kItems;
  const int64_t block_bytes = words * kItems * kWordDimensions;
  std::fill(counts, counts + num_queries, -1);
  if (!is_searched_by_bounds(k)) return;
  if (static_cast<int64_t>(searches_.size()) < kBatchQueries) searches_.resize(static_cast<size_t>(kBatchQueries));
  const Arena::Scope scope(context.scratch);
  const int64_t padded = (kBatchQueries + kernels.quantised_rows - 1) / kernels.quantised_rows * kernels.quantised_rows;
  int32_t* panels = context.scratch.allocate<int32_t>(padded * words);  // [panels, words, quantised_rows]
  int32_t* dots = context.scratch.allocate<int32_t>(kBatchQueries * kBatchBlocks * kItems);
  int64_t* places = context.scratch.allocate<int64_t>(kBatchQueries);  // the query of each search
  alignas(64) float upper[kBatchBlocks * kItems];
  for (int64_t begin = 0, end = 0; begin < num_queries; begin = end) {
    int64_t count = 0;
    for (; end < num_queries && count < kBatchQueries; ++end) {
      Search& search = searches_[static_cast<size_t>(count)];
      if (!begin_search(queries + end * d, excluded, own + own_offsets[end], own + own_offsets[end + 1], k, search)) {
        continue;
      }
      int32_t* panel = panels + count / kernels.quantised_rows * kernels.quantised_rows * words;
      for (int64_t w = 0; w < words; ++w) {
        std::memcpy(panel + w * kernels.quantised_rows + count % kernels.quantised_rows,
                    search.values.data() + w * kWordDimensions, sizeof(int32_t));
      }
      places[count++] = end;
    }
    for (int64_t first = 0; first < num_blocks; first += kBatchBlocks) {
      const int64_t blocks = std::min(kBatchBlocks, num_blocks - first), id = first * kItems;
      kernels.quantised_products(count, blocks, words, panels, quantised_.data() + first * block_bytes, dots,
                                 kBatchBlocks * kItems);
      for (int64_t s = 0; s < count; ++s) {
        Search& search = searches_[static_cast<size_t>(s)];
        if (search.has_too_many) continue;
        const uint64_t found = kernels.bounds_of_products(dots + s * kBatchBlocks * kItems, scales_.data() + id, blocks,
                                                          search.query, search.threshold, upper);
        if (found == 0) continue;
        search.add(found, id, std::min(blocks * kItems, num_items_ - id), upper, scales_.data() + id);
      }
    }
    for (int64_t s = 0; s < count; ++s) {
      Search& search = searches_[static_cast<size_t>(s)];
      if (search.has_too_many) continue;
      const int64_t place = places[s];
      counts[place] = end_search(search, queries + place * d, ids + place * k, scores + place * k);
    }
  }
}

}  // namespace limbeck
