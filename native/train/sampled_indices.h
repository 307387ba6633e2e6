#pragma once

#include <cstdint>
#include <vector>

namespace limbeck {

/// `num_negatives` distinct rows of an output table (all of them when the vocabulary is smaller), ascending, uniform,
/// as a function of the seed: what the rows of one sampled-softmax step share. A uniform sampler corrects every logit
/// by the same constant, which the softmax cancels (Jean et al. 2015, arXiv:1412.2007, §3), so no correction appears.
std::vector<int32_t> draw_negatives(int64_t num_negatives, int64_t vocab_size, uint64_t seed);

/// Which rows of the table the step needs: the negatives, and the labels.
struct SampledIndices {
  std::vector<int32_t> indices;  // [C] ascending row of the full table, C ≤ negatives + labels
  std::vector<int32_t> labels;   // [R] in [0, C)
  std::vector<uint8_t> allowed;  // [C] 1 = drawn as a negative; 0 = there as a label only
};
SampledIndices sample_indices(const int32_t* labels, int64_t num_rows, int64_t num_negatives, int64_t vocab_size,
                              uint64_t seed);

}  // namespace limbeck
