#pragma once

#include <cstdint>

namespace limbeck {

/// Items of an int8 table lie in blocks of 16, transposed so that a vector holds one word of each:
/// [blocks][words][16 items][4 dimensions], the last word padded with zeros.
constexpr int64_t kQuantisedItems = 16;
constexpr int64_t kQuantisedWordDimensions = 4;
/// Largest magnitude of a quantised query: what two signed bytes hold as 128·high + low with low in [−64, 63].
constexpr int32_t kQuantisedQueryMax = 16256;

/// A query for quantised_bounds().
struct QuantisedQuery {
  const int16_t* values;  // [4·words], |value| ≤ kQuantisedQueryMax
  const int8_t* parts;    // [words][8]: four high parts, then four low ones
  int64_t words;
  int64_t value_sum;  // Σ values
  int64_t high_sum;   // Σ high parts
  float scale;        // of a value
  float margin;       // largest error of scale·(values · item) for an item of scale 1
};

}  // namespace limbeck
