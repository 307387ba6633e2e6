#include "retrieve/item_table.h"

#include <algorithm>
#include <cmath>
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
  candidates_.reserve(kMaxCandidates);
  candidate_ids_.reserve(kMaxCandidates);
  values_.resize(static_cast<size_t>(words * kWordDimensions), 0);
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

/// Whether the bounds hold for this query.
bool ItemTable::quantise_query(const float* query) {
  const int64_t d = hidden_size_;
  const float largest = largest_magnitude(query, d), length = norm(query, d);
  if (!std::isfinite(worst_error_) || !std::isfinite(length) || largest < 1e-30f) return false;
  query_scale_ = largest / static_cast<float>(kQuantisedQueryMax);
  value_sum_ = 0;
  double square = 0;
  for (int64_t j = 0; j < d; ++j) {
    const auto value = static_cast<int32_t>(std::nearbyint(query[j] / query_scale_));
    values_[static_cast<size_t>(j)] = static_cast<int8_t>(value);
    value_sum_ += value;
    const double error = static_cast<double>(query[j]) - static_cast<double>(query_scale_) * static_cast<double>(value);
    square += error * error;
  }
  // With query = scale·values + e and item = levels + f (an item of scale 1), query·item − scale·values·levels is
  // (query − e)·f + e·item.
  const auto query_error = static_cast<float>(std::sqrt(square));
  margin_ = (length + query_error) * worst_error_ + query_error * worst_length_ +
            kRounding * static_cast<float>(d + 8) * length * worst_length_;
  return true;
}

/// Fills candidates_ with all items whose upper bound reaches the k-th best lower bound; −1 when they are too many.
int64_t ItemTable::find_candidates(const uint8_t* excluded, int64_t k) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t words = words_of(hidden_size_), block_bytes = words * kItems * kWordDimensions;
  const int64_t num_blocks = (num_items_ + kItems - 1) / kItems;
  const QuantisedQuery query{values_.data(), words, value_sum_, query_scale_, margin_};
  const auto is_behind = [&](const Candidate& candidate) { return candidate.upper < best_lower_.front(); };
  candidates_.clear();
  best_lower_.clear();
  float threshold = -std::numeric_limits<float>::infinity();  // a bound must be above it
  alignas(64) float upper[kBlocksAtOnce * kItems];
  for (int64_t first = 0; first < num_blocks; first += kBlocksAtOnce) {
    const int64_t blocks = std::min(kBlocksAtOnce, num_blocks - first);
    const float* scales = scales_.data() + first * kItems;
    const int64_t count = std::min(blocks * kItems, num_items_ - first * kItems);
    uint64_t found =
        kernels.quantised_bounds(quantised_.data() + first * block_bytes, scales, blocks, query, threshold, upper);
    for (; found != 0; found &= found - 1) {
      const int64_t begin = __builtin_ctzll(found) * kItems, end = std::min(begin + kItems, count);
      for (int64_t i = kernels.find_greater(upper, begin, end, threshold); i < end;
           i = kernels.find_greater(upper, i + 1, end, threshold)) {
        const int64_t id = first * kItems + i;
        if (excluded[id] != 0) continue;
        if (candidates_.size() == kMaxCandidates) {
          candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), is_behind), candidates_.end());
          if (candidates_.size() > kMaxCandidates / 2) return -1;
        }
        candidates_.push_back({static_cast<int32_t>(id), upper[i]});
        const float lower = upper[i] - 2 * scales[i] * margin_;
        if (static_cast<int64_t>(best_lower_.size()) < k) {
          best_lower_.push_back(lower);
          std::push_heap(best_lower_.begin(), best_lower_.end(), std::greater<float>());
        } else if (lower > best_lower_.front()) {
          std::pop_heap(best_lower_.begin(), best_lower_.end(), std::greater<float>());
          best_lower_.back() = lower;
          std::push_heap(best_lower_.begin(), best_lower_.end(), std::greater<float>());
        }
        if (static_cast<int64_t>(best_lower_.size()) == k) {
          threshold = std::nextafter(best_lower_.front(), -std::numeric_limits<float>::infinity());
        }
      }
    }
  }
  if (static_cast<int64_t>(best_lower_.size()) == k) {
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), is_behind), candidates_.end());
  }
  return static_cast<int64_t>(candidates_.size());
}

int64_t ItemTable::top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids,
                         float* scores) {
  const int64_t d = hidden_size_;
  const bool is_large = num_items_ >= kMinItems && k * kMinItemsPerResult <= num_items_ && d <= kMaxHiddenSize &&
                        k <= static_cast<int64_t>(kMaxCandidates) / 4;
  if (is_large && quantise_query(query)) {
    best_lower_.reserve(static_cast<size_t>(k));
    const int64_t count = find_candidates(excluded, k);
    if (count >= 0) {
      // The bits of a product with all items. Candidates ascend by id, as top_k() wants ties.
      candidate_ids_.resize(static_cast<size_t>(count));
      for (size_t i = 0; i < candidate_ids_.size(); ++i) candidate_ids_[i] = candidates_[i].id;
      cpu_kernels().gather_dots(d, query, vectors_.data(), candidate_ids_.data(), count, scores_.data());
      const int64_t found = limbeck::top_k(scores_.data(), nullptr, count, k, ids, scores);
      for (int64_t i = 0; i < found; ++i) ids[i] = candidate_ids_[static_cast<size_t>(ids[i])];
      return found;
    }
  }
  gemm(context, 1, num_items_, d, {query, d, 1}, {vectors_.data(), 1, d}, nullptr, scores_.data(), num_items_, false);
  return limbeck::top_k(scores_.data(), excluded, num_items_, k, ids, scores);
}

}  // namespace limbeck
