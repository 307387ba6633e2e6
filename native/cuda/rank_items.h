#pragma once

#include "cuda/loss_head.h"

namespace limbeck::cuda {

/// What is ranked, in device memory.
struct RankCases {
  const int32_t* targets;           // [num_cases]
  const int32_t* excluded_items;    // lists end to end: each item once in a list, the case's target in none
  const int32_t* excluded_offsets;  // [num_cases + 1]
};

/// Full ranking of a catalogue for each query, as Recommender::rank() of retrieve/recommender.h has it: scores are dot
/// products with all items, ties and scores that are NaN count against the target. All scores of a case are of one
/// product, so that equal vectors tie.
///   queries [num_cases, hidden_size], items: a table without bias, 0 ≤ k ≤ its size
///   ranks [num_cases] =
///   indices, scores [num_cases, k] = the best that have a score and are not excluded, equal ones by lower index;
///   −1 and −∞ where fewer are left
///   chunk_cases: of a product; 0 = by memory
template <typename T>
void rank_items(Context& context, const T* queries, const OutputTable<T>& items, const RankCases& cases,
                int64_t num_cases, int64_t hidden_size, int64_t k, int32_t* ranks, int32_t* indices, float* scores,
                int64_t chunk_cases = 0);

}  // namespace limbeck::cuda
