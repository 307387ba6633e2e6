#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Packed sequences: rows sequence_offsets[s] … sequence_offsets[s+1] − 1 belong to sequence s.
struct AttentionShape {
  int64_t num_sequences;
  const int32_t* sequence_offsets;  // [num_sequences + 1]
  int64_t num_attention_heads;      // H
  int64_t num_key_value_heads;      // KV; query head h uses key-value head h / (H / KV)
  int64_t head_dim;
  bool causal;
  int64_t sliding_window = 0;     // a row sees itself and the window − 1 rows before it; 0 = all. Causal only
  int64_t first_map_element = 0;  // of the first sequence: what dropout counts map elements from
};

/// Number of floats of one layer's attention maps: Σ over sequences of H·t².
int64_t attention_map_floats(const AttentionShape& shape);

/// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, §3.2), scale 1/√head_dim.
///   qkv [N, (H + 2·KV)·head_dim]  columns: queries, keys, values
///   y   [N, H·head_dim] =
///   lse [N, H] =                  log-sum-exp of the scaled scores, saved for backward, or null
///   maps                          null, or the probabilities before dropout, sequence by sequence [H, t, t] = (zeros
///                                 where a row does not see)
/// Dropout on the probabilities when dropout_probability > 0; its mask is a function of (seed, stream, map element).
void attention_forward(Context& context, const AttentionShape& shape, const float* qkv, float* y, float* lse,
                       float* maps, float dropout_probability, uint64_t seed, uint64_t stream);

/// The same for the query row after length − 1 others, without dropout: y [H·head_dim] = . queries [H·head_dim];
/// keys, values [length, row_stride], of which KV·head_dim columns are read.
void attend_row(Context& context, const AttentionShape& shape, const float* queries, const float* keys,
                const float* values, int64_t row_stride, int64_t length, float* y);

///   d_qkv [N, (H + 2·KV)·head_dim] =
///   teacher_maps null, or the teacher's probabilities in the layout of maps: adds the gradient of
///                map_loss_scale · Σ KL(teacher ‖ student), which is map_loss_scale·(student·Σteacher − teacher) on
///                the scaled scores
void attention_backward(Context& context, const AttentionShape& shape, const float* qkv, const float* y,
                        const float* lse, const float* d_y, float* d_qkv, const float* teacher_maps,
                        float map_loss_scale, float dropout_probability, uint64_t seed, uint64_t stream);

/// Σ over sequences, heads and query rows of KL(teacher ‖ student), 0·log 0 = 0; both in the layout of maps. A student
/// that does not see what its teacher does counts as if it gave it the smallest normal number.
double attention_map_divergence(Context& context, const AttentionShape& shape, const float* teacher_maps,
                                const float* student_maps);

}  // namespace limbeck
