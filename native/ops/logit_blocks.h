#pragma once

#include <cstdint>
#include <functional>

#include "ops/context.h"

namespace limbeck {

/// Gets columns first … first + count − 1 of a row of logits, and may overwrite them.
using VisitLogits = std::function<void(int64_t row, float* logits, int64_t first, int64_t count)>;

/// Logits x [num_rows, d]·tableᵀ [d, num_columns] + bias [num_columns], or null, block after block of columns: the
/// table is read and packed once, however many rows there are, and logits are visited while they lie in the cache.
/// Blocks of a row come in order, one after the other; rows are visited on any thread. Bits are those of gemm_packed().
void for_each_logit_block(Context& context, const float* x, const float* table, const float* bias, int64_t num_rows,
                          int64_t d, int64_t num_columns, const VisitLogits& visit);

}  // namespace limbeck
