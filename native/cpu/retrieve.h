#pragma once

#include <cstdint>

namespace limbeck {

/// Items of a quantised table lie in blocks of 16, transposed so that a vector holds one word of each:
/// [blocks][words][16 items][4 dimensions] of unsigned bytes, level + kQuantisedOffset, the last word padded.
constexpr int64_t kQuantisedItems = 16;
constexpr int64_t kQuantisedWordDimensions = 4;
/// Blocks of a 64-bit word that has a bit an item.
constexpr int64_t kQuantisedWordBlocks = 64 / kQuantisedItems;
constexpr int32_t kQuantisedOffset = 128;
/// A query that bounds are computed for.
struct QuantisedQuery {
  const int8_t* values;  // [4·words], |value| ≤ quantised_query_max of the kernels, zeros beyond the last dimension
  int64_t words;
  int32_t value_sum;  // Σ values
  float scale;        // of a value
  float margin;       // largest error of scale·(values · levels) for an item of scale 1
  float threshold;    // a bound must be above it to be of interest
};

}  // namespace limbeck
