#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// The k best of scores that come part by part, in indices and values [k]. No allocation.
class BestScores {
 public:
  /// size: how many are there already, of a list that was not sorted.
  BestScores(int32_t* indices, float* values, int64_t k, int64_t size = 0)
      : indices_(indices), values_(values), k_(k), size_(size) {}

  int64_t size() const { return size_; }
  /// Scores [count] of indices first, first + 1, …, all above those of earlier parts. NaN are left out, and where
  /// excluded [count], or null, is 1.
  void add(const float* scores, const uint8_t* excluded, int64_t count, int32_t first);
  /// Best first, equal scores by lower index. Ends the list.
  void sort();
  /// A list that is shorter than k, of `count` scores in all, none excluded: those that were NaN follow, by index.
  void fill_with_nan(int64_t count);

 private:
  bool is_worse(int64_t a, int64_t b) const;
  void swap(int64_t a, int64_t b);
  void push(float value, int32_t index);
  void replace_root(float value, int32_t index);
  void sink_root();

  // A heap with the worst at the root.
  int32_t* indices_;
  float* values_;
  int64_t k_, size_;
};

/// The k best of scores [count], best first, equal scores by lower index. excluded: null or [count] bytes, 1 = left
/// out. NaN counts as the worst. Returns how many were written to indices and values (≤ k). No allocation.
int64_t top_k(const float* scores, const uint8_t* excluded, int64_t count, int64_t k, int32_t* indices, float* values);

/// log Σ exp(x) of a row, computed around its maximum.
double log_sum_exp(const float* x, int64_t count);
/// log(eᵃ + eᵇ)
double log_add_exp(double a, double b);

}  // namespace limbeck
