#pragma once

#include "cuda/loss_head.h"

namespace limbeck::cuda {

/// Sampled softmax: cross-entropy of each row over the drawn columns and, where its label is none of them, its label.
template <typename T>
struct SampledLabels {
  const int32_t* columns;  // [num_rows] the drawn column that is the label, or −1
  const T* weight;         // [num_rows, hidden_size] the label's row of the table
  const T* bias;           // [num_rows] or null
};

///   drawn    the drawn rows of the table, see sample_table()
///   d_hidden [num_rows, hidden_size] = ; d_drawn fp32 [padded count, hidden_size] +=, zeros to the rows beyond count;
///   d_drawn_bias [count] += or null
///   d_labels [num_rows, hidden_size] = , d_labels_bias fp32 [num_rows] = : zeros where the label was drawn
///   chunk_rows as of loss_head()
template <typename T>
void sampled_loss_head(Context& context, const T* hidden, const OutputTable<T>& drawn, const SampledLabels<T>& labels,
                       float ce_weight, float row_scale, T* d_hidden, float* d_drawn, float* d_drawn_bias, T* d_labels,
                       float* d_labels_bias, double* sums, int64_t num_rows, int64_t hidden_size,
                       int64_t chunk_rows = 0);

/// The rows `indices` [count] of an output table, packed and padded to a multiple of 64 rows (zeros), and back:
/// d_table[indices[c]] += d_sampled[c], the same for the bias (null = none). Indices are distinct.
template <typename T>
void sample_table(Context& context, const OutputTable<T>& table, const int32_t* indices, int64_t count, T* weight,
                  T* bias, int64_t hidden_size);
void scatter_table_gradient(Context& context, const float* d_sampled, const float* d_sampled_bias,
                            const int32_t* indices, int64_t count, float* d_table, float* d_bias, int64_t hidden_size);

}  // namespace limbeck::cuda
