#pragma once

#include "cuda/pending_sums.h"

namespace limbeck::cuda {

/// Packed sequences, as AttentionShape of ops/attention.h, with offsets in device memory.
struct AttentionShape {
  int64_t num_tokens;               // N
  int64_t num_sequences;            // S
  int64_t max_length;               // of a sequence: sizes the grid
  const int32_t* sequence_offsets;  // [S + 1]
  const int64_t* map_offsets;   // [S + 1] Σ t² of the sequences before; maps of sequence s begin at H·map_offsets[s]
  int64_t num_attention_heads;  // H
  int64_t num_key_value_heads;  // KV; query head h uses key-value head h / (H / KV)
  int64_t head_dim;
  bool causal;
  int64_t sliding_window = 0;  // a row sees itself and the window − 1 rows before it; 0 = all. Causal only
};

/// Dropout of the probabilities: mask by (seed, stream, map element), as on the CPU. probability 0 = none.
struct AttentionDropout {
  float probability = 0;
  const uint64_t* seed = nullptr;  // [1] device memory
  uint64_t stream = 0;
  int64_t first_map_element = 0;  // of the first sequence: what map elements are counted from
};

/// softmax(q·kᵀ/√head_dim)·v, without a [t, t] matrix in memory (Dao 2023, arXiv:2307.08691, alg. 1), bf16 on the
/// tensor cores, fp32 with plain arithmetic.
///   qkv  [N, (H + 2·KV)·head_dim]  columns: queries, keys, values
///   y    [N, H·head_dim] =
///   lse  [H, N] =                  log-sum-exp of the scaled scores, for backward and maps
template <typename T>
void attention_forward(Context& context, const AttentionShape& shape, const T* qkv, T* y, float* lse,
                       const AttentionDropout& dropout);

/// The probabilities before dropout from qkv and lse, sequence by sequence [H, t, t] = (zeros where a row does not
/// see).
template <typename T>
void attention_maps(Context& context, const AttentionShape& shape, const T* qkv, const float* lse, float* maps);

///   d_qkv [N, (H + 2·KV)·head_dim] = , the same bits on every run (no atomic additions)
///   teacher_maps null, or fp32 in the layout of maps: adds the gradient of map_loss_scale · Σ KL(teacher ‖ student),
///   which is map_loss_scale·(student·Σteacher − teacher) on the scaled scores
///   d_bias null, or [(H + 2·KV)·head_dim] += Σ over rows of d_qkv, but of the keys' columns, where it is exactly zero;
///   with the sums that wait in `pending`, or at once where that is null
template <typename T>
void attention_backward(Context& context, const AttentionShape& shape, const T* qkv, const T* y, const float* lse,
                        const T* d_y, T* d_qkv, const float* teacher_maps, float map_loss_scale,
                        const AttentionDropout& dropout, float* d_bias = nullptr, PendingSums* pending = nullptr);

/// sum [1] += Σ over sequences, heads and query rows of KL(teacher ‖ student), as attention_map_divergence of
/// ops/attention.h; both fp32 in the layout of maps.   map_elements = H·Σt²
void attention_map_divergence(Context& context, const float* teacher_maps, const float* student_maps,
                              int64_t map_elements, double* sum);

/// Value relations of ops/value_relation.h; `shape` has the relation heads as query and as key-value heads.
///   values [N, A·head_dim], maps [A, t, t] a sequence =
template <typename T>
void value_relation_forward(Context& context, const AttentionShape& shape, const T* values, float* maps);
/// Gradient of scale · Σ KL(teacher ‖ student).   maps: the student's, from the forward; d_values [N, A·head_dim] =
template <typename T>
void value_relation_backward(Context& context, const AttentionShape& shape, const T* values, const float* maps,
                             const float* teacher_maps, float scale, T* d_values);

}  // namespace limbeck::cuda
