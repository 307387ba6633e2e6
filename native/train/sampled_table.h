#pragma once

#include <cstdint>

#include "core/arena.h"
#include "model/transformer.h"
#include "train/sampled_indices.h"

namespace limbeck {

/// The rows `indices` of an output table, packed.
struct SampledTable {
  const float* weight;  // [C, d]
  const float* bias;    // [C] or null
};
SampledTable sample_table(Arena& arena, const OutputTable& table, const SampledIndices& sampled, int64_t hidden_size);

/// d_table[indices[c]] += d_sampled[c], and the same for the bias when there is one.
void scatter_table_gradient(const SampledIndices& sampled, const float* d_sampled, const float* d_sampled_bias,
                            float* d_table, float* d_bias, int64_t hidden_size);

}  // namespace limbeck
