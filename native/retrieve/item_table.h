#pragma once

#include <cstdint>

#include "core/memory.h"
#include "core/shared_vector.h"
#include "cpu/retrieve.h"
#include "ops/context.h"

namespace limbeck {

/// Item vectors [num_items, hidden_size] that queries are ranked by, in fp32 and in int8. A search reads the int8
/// table, a quarter of the bytes, keeps the items whose score may reach the best k given the rounding errors, and
/// scores those in fp32: its answer is that of a search in fp32. Copies share the vectors until one of them appends.
class ItemTable {
 public:
  explicit ItemTable(int64_t hidden_size) : hidden_size_(hidden_size) {}

  int64_t num_items() const { return num_items_; }
  /// [num_items, hidden_size]
  const float* vectors() const { return vectors_.data(); }

  /// vectors [count, hidden_size]
  void append(const float* vectors, int64_t count);

  /// The k best items for query [hidden_size] whose excluded[id] is 0, best first, equal scores by lower id; returns
  /// how many.
  int64_t top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids,
                float* scores) const;

  /// The same for several queries [num_queries, hidden_size], which are multiplied with the table together, in int8: it
  /// is read once. Query s also leaves out own[own_offsets[s] … own_offsets[s + 1]), ascending. ids, scores
  /// [num_queries, k]; counts [num_queries] = how many were found, −1 for a query that top_k() must be asked for.
  void top_k_of_batch(Context& context, const float* queries, int64_t num_queries, const uint8_t* excluded,
                      const int32_t* own, const int32_t* own_offsets, int64_t k, int32_t* ids, float* scores,
                      int64_t* counts) const;

 private:
  bool is_searched_by_bounds(int64_t k) const;
  bool quantise(const float* query, int8_t* values, QuantisedQuery& quantised) const;

  int64_t hidden_size_;
  int64_t num_items_ = 0;
  SharedVector<float> vectors_;      // [num_items, hidden_size]
  SharedVector<uint8_t> quantised_;  // cpu/retrieve.h
  SharedVector<float> scales_;       // [num_items rounded up to 16], NaN beyond the last
  // Largest norm of an item's rounding error over its scale; infinite once an item is not finite.
  float worst_error_ = 0;
  float worst_length_ = 0;  // largest norm of an item over its scale
  float largest_scale_ = 0;
};

}  // namespace limbeck
