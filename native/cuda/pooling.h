#pragma once

#include "cuda/attention.h"
#include "cuda/context.h"

namespace limbeck::cuda {

/// Mean over the tokens of each sequence.
///   hidden [N, width], sequence_offsets [num_sequences + 1], pooled fp32 [num_sequences, width] =
template <typename T>
void pool_mean(Context& context, const T* hidden, const int32_t* sequence_offsets, float* pooled, int64_t num_sequences,
               int64_t width);

/// Sum weighted by the attention that each token receives: the mean over heads and over the queries that see it,
/// normalised to sum 1.
///   maps as in attention_maps, received [N] = (scratch of the caller)
template <typename T>
void pool_by_attention(Context& context, const AttentionShape& shape, const float* maps, const T* hidden,
                       float* received, float* pooled, int64_t width);

/// The first or last token of each sequence.
template <typename T>
void pool_token(Context& context, const T* hidden, const int32_t* sequence_offsets, bool is_last, float* pooled,
                int64_t num_sequences, int64_t width);

}  // namespace limbeck::cuda
