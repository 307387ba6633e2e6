#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// The k best of scores [count], best first, equal scores by lower index. excluded: null or [count] bytes, 1 = left
/// out. NaN counts as the worst. Returns how many were written to indices and values (≤ k). No allocation.
int64_t top_k(const float* scores, const uint8_t* excluded, int64_t count, int64_t k, int32_t* indices, float* values);

/// log Σ exp(x) of a row, computed around its maximum.
double log_sum_exp(const float* x, int64_t count);

}  // namespace limbeck
