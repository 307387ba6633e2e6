#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/transformer.h"
#include "ops/context.h"
#include "retrieve/item_table.h"
#include "retrieve/request_device.h"

namespace limbeck {

struct RankInputs {
  Batch batch;                     // histories
  const float* states;             // [S, d] the state after each history where it is known, or null
  const int32_t* targets;          // [S] the item that came next
  const int32_t* exclude_ids;      // lists end to end
  const int32_t* exclude_offsets;  // [S + 1]
  int64_t top_k;                   // 0 = ranks only
};

/// A snapshot of a sequence student, its item table folded (e_i = v_i + A·u_i). It never changes, so any number of
/// threads may read it; retriever.h serves requests from it.
class Recommender {
 public:
  explicit Recommender(Context& context, const Transformer& model);

  int64_t num_items() const { return items_.num_items(); }
  int64_t hidden_size() const { return model_.config().hidden_size; }
  int64_t item_feature_size() const { return item_feature_size_; }
  /// Longest history that the model reads.
  int64_t max_history() const { return model_.config().max_position_embeddings; }
  const ItemTable& items() const { return items_; }
  /// A [d, f]
  const float* item_projection() const { return item_projection_.data(); }
  /// u [num_items, f], each of length 1 or 0, or null when items have no features.
  const float* item_features() const { return item_features_.empty() ? nullptr : item_features_.data(); }

  /// The state after each sequence of item vectors: last [S, d] = . Sequences of a call share memory for their
  /// activations: about 512 tokens at a time.
  void last_hidden(Context& context, Arena& arena, const float* vectors, const int32_t* sequence_offsets,
                   int64_t num_sequences, float* last) const;
  /// The same of vectors that are gathered when they are needed: gather(first, count, context, arena) gives those of
  /// tokens [count, d] from the first one on, on any thread, and may allocate them in the arena that it is given.
  using Gather = std::function<const float*(int64_t first, int64_t count, Context& context, Arena& arena)>;
  void last_hidden(Context& context, Arena& arena, const Gather& gather, const int32_t* sequence_offsets,
                   int64_t num_sequences, float* last) const;
  /// As last_hidden() for one sequence, which lies in `arena` afterwards: [d].
  const float* last_hidden(Context& context, Arena& arena, const float* vectors, int64_t length) const;

  /// Full ranking over the catalogue: ranks [S] = 1 + the number of other, not excluded items that score at least as
  /// high as the target (ties count against it, and so do items whose score is NaN); a target is never excluded.
  /// top_k_ids, top_k_scores [S, k], filled up with −1 and −∞ when fewer items are left that have a score.
  ///   device  that of this recommender, which ranks where it can; or null
  void rank(Context& context, Arena& arena, const RankInputs& inputs, int32_t* ranks, int32_t* top_k_ids,
            float* top_k_scores, RequestDevice* device = nullptr) const;

 private:
  Transformer model_;                   // without an item table
  std::vector<float> item_projection_;  // A [d, f]
  std::vector<float> item_features_;    // u [num_items, f], of length 1
  int64_t item_feature_size_;
  ItemTable items_;
};

/// Error("ERR_INVALID_ARGUMENT") unless 0 ≤ id < limit.
void check_item(const char* what, int32_t id, int64_t limit);

/// Error("ERR_NOT_FINITE") unless all values [count] are finite: what is not has no order.
void check_finite(const char* what, const float* values, int64_t count);

}  // namespace limbeck
