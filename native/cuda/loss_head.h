#pragma once

#include "cuda/context.h"

namespace limbeck::cuda {

/// TeacherLogits of ops/loss_head.h in device memory; at most one source is set.
template <typename T>
struct TeacherLogits {
  const float* dense = nullptr;         // [·, vocab_size] fp32
  const int32_t* dense_rows = nullptr;  // [num_rows] the row of `dense` for each row; null = the same
  const T* hidden = nullptr;            // [num_rows, hidden_size], logits = hidden·tableᵀ + bias
  const T* table = nullptr;             // [padded vocab, hidden_size], see OutputTable
  const T* bias = nullptr;              // [padded vocab] or null
  int64_t hidden_size = 0;
  const int32_t* top_k_indices = nullptr;  // [num_rows, top_k]
  const float* top_k_values = nullptr;     // [num_rows, top_k] logits
  const float* log_sum_exp = nullptr;      // [num_rows] over the whole vocabulary at temperature 1
  int64_t top_k = 0;
  bool present() const { return dense != nullptr || hidden != nullptr || top_k > 0; }
};

struct LossHeadOptions {
  float ce_weight = 1, kd_weight = 0, temperature = 1, fusion = 1, gate = 1;  // as in ops/loss_head.h
};

/// Rows of the output table. padded_vocab_size is vocab_size rounded up to a multiple of 64, the rows beyond are zeros:
/// aligned rows of logits multiply faster. Columns beyond vocab_size take no part in any softmax and get no gradient.
template <typename T>
struct OutputTable {
  const T* weight;  // [padded_vocab_size, hidden_size]
  const T* bias;    // [padded_vocab_size] or null
  int64_t vocab_size, padded_vocab_size;
};

/// Output projection, cross-entropy and distillation, chunk of rows by chunk of rows, exactly as loss_head of
/// ops/loss_head.h: sums [2] += Σ CE and Σ gate·τ²·KL over rows; gradients are of
/// row_scale·(ce_weight·ce_sum + kd_weight·kd_sum).
///   hidden [num_rows, hidden_size], labels [num_rows] (checked on the host)
///   d_hidden [num_rows, hidden_size] = or null: value only; d_bias fp32 [vocab_size] += or null
///   d_table fp32 [padded_vocab_size, hidden_size] =, += with accumulates_table, or null: zeros to the rows beyond
///   vocab_size, as a product with an odd number of rows takes a slower kernel
///   allowed null, or [vocab_size] bytes: 0 = this column takes part only in rows of which it is the label
///   chunk_rows 0 = as many as about 2.8 GB of logits hold; of the functions below, too
template <typename T>
void loss_head(Context& context, const T* hidden, const OutputTable<T>& table, const int32_t* labels,
               const TeacherLogits<T>& teacher, const LossHeadOptions& options, float row_scale, const uint8_t* allowed,
               T* d_hidden, float* d_table, bool accumulates_table, float* d_bias, double* sums, int64_t num_rows,
               int64_t hidden_size, int64_t chunk_rows = 0);

/// Rows of logits as fp32 [num_rows, vocab_size] =   (dense logits for the host)
template <typename T>
void dense_logits(Context& context, const T* hidden, const OutputTable<T>& table, float* logits, int64_t num_rows,
                  int64_t hidden_size, int64_t chunk_rows = 0);

/// The k best logits of each row, best first, equal ones by lower index, and the log-sum-exp of the row; chunk by
/// chunk. In fp32 whatever T is; NaN counts as the worst.
///   1 ≤ k ≤ vocab_size, checked; indices, values [num_rows, k] =, log_sum_exp [num_rows] =
template <typename T>
void top_k_logits(Context& context, const T* hidden, const OutputTable<T>& table, int64_t k, int32_t* indices,
                  float* values, float* log_sum_exp, int64_t num_rows, int64_t hidden_size, int64_t chunk_rows = 0);

}  // namespace limbeck::cuda
