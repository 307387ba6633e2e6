#pragma once

#include "cuda/context.h"

namespace limbeck::cuda {

/// Items rounded to int8, beside the items themselves: a search reads these, which bound each score from both sides,
/// and then the few items that may be among the best. Item i is scales[i]·levels[i] to within half a scale in each
/// dimension; the scale of an item that no int8 can stand for, as it is not finite or too large, is infinite.
struct QuantisedItems {
  const int8_t* levels =
      nullptr;                    // [num_items, row_bytes(hidden_size)], zeros beyond hidden_size; null: there are none
  const float* scales = nullptr;  // [num_items rounded up to 4]

  static constexpr int64_t kMaxWidth = 512;  // up to it, sums of products fit in 32 bits
  static constexpr float kLevels = 127;      // of an int8, without −128: the range is even
  static int64_t row_bytes(int64_t hidden_size) { return (hidden_size + 15) / 16 * 16; }
};

/// Of items [num_items, hidden_size], hidden_size ≤ kMaxWidth, in memory that the caller gives.
template <typename T>
QuantisedItems quantise_items(Context& context, const T* items, int64_t num_items, int64_t hidden_size, int8_t* levels,
                              float* scales);

}  // namespace limbeck::cuda
