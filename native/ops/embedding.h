#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// y[i] = table[ids[i]]. ids are checked: Error("ERR_INVALID_ARGUMENT") when one is outside [0, num_embeddings).
///   ids [num_rows], table [num_embeddings, hidden_size], y [num_rows, hidden_size] =
void embedding_forward(Context& context, const int32_t* ids, const float* table, float* y, int64_t num_rows,
                       int64_t hidden_size, int64_t num_embeddings);

/// y[i] += table[ids[i]], ids checked likewise.
void embedding_add_forward(Context& context, const int32_t* ids, const float* table, float* y, int64_t num_rows,
                           int64_t hidden_size, int64_t num_embeddings);

///   d_table[ids[i]] += d_y[i], in the order of i for every number of threads
void embedding_backward(Context& context, const int32_t* ids, const float* d_y, float* d_table, int64_t num_rows,
                        int64_t hidden_size, int64_t num_embeddings);

/// Rotary positions (Su et al. 2021, arXiv:2104.09864, §3.2.2; half-split form of Llama): in each head the pair
/// (x[j], x[j + head_dim/2]) turns by position·frequencies[j], plainly theta^(−2j/head_dim), and grows by `scale`. In
/// place on the first num_heads heads of each row.
///   x [num_rows, row_stride], position_ids [num_rows], frequencies [head_dim/2]
///   direction +1 forward, −1 backward (the gradient turns back, and grows alike)
void rotary(Context& context, float* x, const int32_t* position_ids, int64_t num_rows, int64_t row_stride,
            int64_t num_heads, int64_t head_dim, const double* frequencies, float scale, int direction);

}  // namespace limbeck
