#pragma once

#include "cuda/loss_head.h"

namespace limbeck::cuda {

/// Whether catalogue_loss() is for these: it is where memory, not arithmetic, sets the pace, as over a large catalogue
/// with narrow hidden rows.
bool fits_catalogue_loss(const bf16* hidden, const OutputTable<bf16>& table, const bf16* d_hidden, int64_t hidden_size);

/// As loss_head() without teacher and allowed columns. Logits are never written, exponentials once, for the two
/// products of the gradient; and logits are not rounded on their way to the softmax.
///   hidden_size a multiple of 16 ≤ 128, pointers aligned to 16 bytes
///   losses [num_rows] = (cross-entropy, 0); gradients are of scale·Σ cross-entropy
///   d_hidden [num_rows, hidden_size] = or null: value only; d_bias fp32 [vocab_size] += or null
///   d_table fp32 [padded_vocab_size, hidden_size] =, += with accumulates_table, or null
///   chunk_rows > 0, rows whose exponentials are kept at a time
void catalogue_loss(Context& context, const bf16* hidden, const OutputTable<bf16>& table, const int32_t* labels,
                    float scale, bf16* d_hidden, float* d_table, bool accumulates_table, float* d_bias, float2* losses,
                    int64_t num_rows, int64_t hidden_size, int64_t chunk_rows);

}  // namespace limbeck::cuda
