#pragma once

#include <cstdint>
#include <vector>

namespace limbeck {

/// Which rows of an output table one sampled-softmax step needs: uniform negatives shared by the batch, and the labels.
/// A uniform sampler corrects every logit by the same constant, which the softmax cancels (Jean et al. 2015,
/// arXiv:1412.2007, §3), so no correction appears.
struct SampledIndices {
  std::vector<int32_t> indices;  // [C] ascending row of the full table, C ≤ negatives + labels
  std::vector<int32_t> labels;   // [R] in [0, C)
  std::vector<uint8_t> allowed;  // [C] 1 = drawn as a negative; 0 = there as a label only
};

/// Draws `num_negatives` distinct rows (all when the vocabulary is smaller) as a function of the seed.
SampledIndices sample_indices(const int32_t* labels, int64_t num_rows, int64_t num_negatives, int64_t vocab_size,
                              uint64_t seed);

}  // namespace limbeck
