#pragma once

#include <cstdint>

namespace limbeck {

/// Where plain requests may be answered faster than here, from the items that the recommender was made with: a GPU.
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
};

}  // namespace limbeck
