#pragma once

#include "cuda/quantised_items.h"

namespace limbeck::cuda {

/// What serves one query that a graph runs again and again.
struct GraphQuery {
  const int32_t* excluded_items = nullptr;  // [*num_excluded] left out; those outside the catalogue do nothing
  const int32_t* num_excluded = nullptr;    // [1] in device memory, or null = none
  unsigned* num_finished = nullptr;         // [1] 0 before and after; null: one more operation sets it
};

/// With more answers than these, quantised items are not read.
inline constexpr int64_t kMaxQuantisedK = 64;

/// The k best items of a catalogue for each query, by dot product, best first, equal ones by lower index; the scores
/// are never written. excluded: null, or [num_queries, ⌈num_items/32⌉] bits, 1 = left out. 1 ≤ k ≤ 1024, checked.
///   queries [num_queries, hidden_size], items [num_items, hidden_size], indices, scores [num_queries, k] =
///   (index −1, score −∞ where fewer are eligible; NaN counts as the worst)
///   chunk_items: of a product of many queries with the items; 0 = by memory
///   graph: of one query
///   quantised: of the same items, or none; one query is then answered by reading these and few of the items. The
///   answer is the same to the bit.
template <typename T>
void top_k_items(Context& context, const T* queries, const T* items, const uint32_t* excluded, int64_t num_queries,
                 int64_t num_items, int64_t hidden_size, int64_t k, int32_t* indices, float* scores,
                 int64_t chunk_items = 0, const GraphQuery& graph = {}, const QuantisedItems& quantised = {});

}  // namespace limbeck::cuda
