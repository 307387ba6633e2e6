#pragma once

#include <cstdint>
#include <vector>

#include "model/transformer.h"
#include "ops/context.h"
#include "retrieve/item_table.h"

namespace limbeck {

struct RankInputs {
  Batch batch;                     // histories
  const int32_t* targets;          // [S] the item that came next
  const int32_t* exclude_ids;      // lists end to end
  const int32_t* exclude_offsets;  // [S + 1]
  int64_t top_k;                   // 0 = ranks only
};

/// A snapshot of a sequence student, its item table folded (e_i = v_i + A·u_i), that ranks the catalogue.
class Recommender {
 public:
  explicit Recommender(Context& context, const Transformer& model);

  int64_t num_items() const { return items_.num_items(); }
  int64_t item_feature_size() const { return item_feature_size_; }

  /// The best k items after `history` (its last maxPositionEmbeddings items are read), on the calling thread. Best
  /// first, equal scores by lower id; returns how many, fewer than k when the catalogue is exhausted. Once the longest
  /// history was seen it allocates nothing. An id −1 − j in the history is row j of features [num_features, f]: an item
  /// outside the catalogue. Not thread-safe with itself or add_items.
  int64_t recommend(const int32_t* history, int64_t history_length, const float* features, int64_t num_features,
                    const int32_t* exclude, int64_t num_excluded, int64_t k, int32_t* item_ids, float* scores);

  /// Appends items that have features only (v = 0): e = A·u. features [n, f]; returns the id of the first.
  int64_t add_items(const float* features, int64_t num_features);

  /// Full ranking over the catalogue: ranks [S] = 1 + the number of other, not excluded items that score at least as
  /// high as the target (ties count against it); a target is never excluded. top_k_ids, top_k_scores [S, k], filled up
  /// with −1 and −∞ when fewer items are left. Reads the snapshot alone: may run beside recommend().
  void rank(Context& context, Arena& arena, const RankInputs& inputs, int32_t* ranks, int32_t* top_k_ids,
            float* top_k_scores) const;

 private:
  void check_item(const char* what, int32_t id, int64_t limit) const;
  /// The hidden state of the last row of each sequence: last [S, d] = .
  void last_hidden(Context& context, Arena& arena, const Batch& batch, float* last) const;

  Transformer model_;                   // without an item table
  std::vector<float> item_projection_;  // A [d, f]
  int64_t item_feature_size_;
  ItemTable items_;  // grows by add_items
  // Of the synchronous path; the pool has no thread but the caller's.
  ThreadPool serving_pool_{1};
  Arena serving_arena_;
  std::vector<uint8_t> excluded_;  // [num_items], zero between calls
};

}  // namespace limbeck
