#pragma once

#include <cstdint>
#include <vector>

#include "core/memory.h"
#include "core/shared_vector.h"
#include "ops/context.h"

namespace limbeck {

/// Item vectors [num_items, hidden_size] that queries are ranked by, in fp32 and in int8. A search reads the int8
/// table, a quarter of the bytes, keeps the items whose score may reach the best k given the rounding errors, and
/// scores those in fp32: its answer is that of a search in fp32. Copies share the vectors until one of them appends,
/// and may search on several threads.
class ItemTable {
 public:
  explicit ItemTable(int64_t hidden_size) : hidden_size_(hidden_size) {}

  int64_t num_items() const { return num_items_; }
  /// [num_items, hidden_size]
  const float* vectors() const { return vectors_.data(); }

  /// vectors [count, hidden_size]
  void append(const float* vectors, int64_t count);

  /// The k best items for query [hidden_size] whose excluded[id] is 0, best first, equal scores by lower id; returns
  /// how many. Allocates nothing unless k is larger than before. Not thread-safe.
  int64_t top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids, float* scores);

 private:
  struct Candidate {
    int32_t id;
    float upper;
  };
  bool quantise_query(const float* query);
  int64_t find_candidates(const uint8_t* excluded, int64_t k);

  int64_t hidden_size_;
  int64_t num_items_ = 0;
  SharedVector<float> vectors_;      // [num_items, hidden_size]
  SharedVector<uint8_t> quantised_;  // cpu/retrieve.h
  SharedVector<float> scales_;       // [num_items rounded up to 16], 0 beyond the last
  // Largest norm of an item's rounding error over its scale; infinite once an item is not finite.
  float worst_error_ = 0;
  float worst_length_ = 0;  // largest norm of an item over its scale

  // Of the search in hand.
  std::vector<int8_t> values_;
  int32_t value_sum_ = 0;
  float query_scale_ = 0, margin_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> candidate_ids_;
  std::vector<float> best_lower_;  // heap of the k best lower bounds, the least first
  std::vector<float> scores_;      // [num_items] when all are scored
};

}  // namespace limbeck
