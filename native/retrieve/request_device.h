#pragma once

#include <cstdint>

namespace limbeck {

struct RankInputs;

/// Where plain requests may be answered faster than here, from the items that the recommender was made with: a GPU.
/// Requests and rankings never come at the same time.
class RequestDevice {
 public:
  virtual ~RequestDevice() = default;
  /// Whether it can answer now, and would answer as the recommender does.
  virtual bool is_ready() = 0;
  /// Most answers, and most items left out.
  virtual int64_t max_items() const = 0;
  /// The best k items after `history` [length], oldest first, but those of `exclude` [num_excluded]; ids are checked.
  /// Best first, equal scores by lower id; returns how many.   item_ids, scores [k] =
  virtual int64_t recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded,
                            int64_t k, int32_t* item_ids, float* scores) = 0;
  /// Recommender::rank() of what it has checked: in a list of exclusions each item stands once, and the target in none;
  /// top_k is at most the number of items. False, and nothing written, where it would rank otherwise than the
  /// recommender, or has no memory for it.   ranks [S], item_ids, scores [S, top_k] =
  virtual bool rank(const RankInputs& inputs, int32_t* ranks, int32_t* item_ids, float* scores) = 0;
};

}  // namespace limbeck
