#pragma once

#include <cstdint>

#include "core/arena.h"
#include "model/transformer.h"

namespace limbeck {

/// The rows of an output table that one sampled-softmax step needs: uniform negatives shared by the batch, and the
/// labels. A uniform sampler corrects every logit by the same constant, which the softmax cancels (Jean et al. 2015,
/// arXiv:1412.2007, §3), so no correction appears.
struct SampledTable {
  int64_t count;           // C ≤ negatives + labels
  const int32_t* indices;  // [C] ascending row of the full table
  const float* weight;     // [C, d]
  const float* bias;       // [C] or null
  const int32_t* labels;   // [R] in [0, C)
  const uint8_t* allowed;  // [C] 1 = drawn as a negative; 0 = there as a label only
};

/// Draws `num_negatives` distinct rows (all when the vocabulary is smaller) as a function of the seed.
SampledTable sample_table(Arena& arena, const OutputTable& table, const int32_t* labels, int64_t num_rows,
                          int64_t num_negatives, int64_t vocab_size, int64_t hidden_size, uint64_t seed);

/// d_table[indices[c]] += d_sampled[c], and the same for the bias when there is one.
void scatter_table_gradient(const SampledTable& sampled, const float* d_sampled, const float* d_sampled_bias,
                            float* d_table, float* d_bias, int64_t hidden_size);

}  // namespace limbeck
