#pragma once

#include <cstdint>
#include <vector>

#include "ops/context.h"

namespace limbeck {

/// Histories laid end to end; ids in [0, num_items).
struct Histories {
  const int32_t* items;    // [N]
  const int32_t* offsets;  // [num_histories + 1], from 0 to N, ascending
  int64_t num_histories;
};

/// Rows of a sparse matrix [num_items, num_items]: which items are chosen by the same people, and how surely.
struct ItemNeighbors {
  std::vector<int64_t> offsets;  // [rows + 1], from 0
  std::vector<int32_t> items;    // ascending within a row, never the row's own item
  std::vector<float> cosines;    // in (0, 1]
};

/// The rows of items [begin, end): cos(i, j) = n_ij / √(n_i·n_j), where n_i histories hold i and n_ij hold both,
/// however often. Nothing is left out. The same on any number of threads. Source: Deshpande and Karypis 2004,
/// Item-based top-N recommendation algorithms, §4.1, on binary vectors of users. Error("ERR_INVALID_ARGUMENT"): offsets
/// that do not ascend from 0 to N, or an item out of range.
ItemNeighbors item_neighbors(Context& context, const Histories& histories, int64_t num_history_items, int64_t num_items,
                             int64_t begin, int64_t end);

/// A sparse matrix in place, all rows.
struct ItemNeighborsView {
  const int32_t* offsets;  // [num_items + 1]
  const int32_t* items;
  const float* cosines;
  int64_t num_entries;
  int64_t num_items;
};

struct NeighborRankInputs {
  Histories histories;  // oldest item first
  int64_t num_history_items;
  const int32_t* targets;          // [S]
  const int32_t* exclude_ids;      // items never recommended; the target of a case is never excluded
  const int32_t* exclude_offsets;  // [S + 1]
  int64_t num_excluded;
  float decay;  // an item's weight is decay^(places from the end), in (0, 1]
  int64_t top_k;
};

/// Full ranking by score(j) = Σ_p decay^(n−1−p)·cos(h_p, j) over a history h_0 … h_(n−1).
///   ranks       [S]         1 + the number of other items, not excluded, that score at least as much as the target
///   top_k_items [S, top_k]  best first, equal scores by lower id; −1 where the catalogue is exhausted
/// Error("ERR_INVALID_ARGUMENT"): offsets or ids out of range, in the cases or in the matrix.
void rank_by_neighbors(Context& context, const ItemNeighborsView& neighbors, const NeighborRankInputs& inputs,
                       int32_t* ranks, int32_t* top_k_items);

}  // namespace limbeck
