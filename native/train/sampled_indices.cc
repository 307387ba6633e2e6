#include "train/sampled_indices.h"

#include <algorithm>
#include <iterator>

#include "core/rng.h"

namespace limbeck {

namespace {
constexpr uint64_t kNegativeStream = uint64_t{1} << 41;  // away from the dropout masks
}

std::vector<int32_t> draw_negatives(int64_t num_negatives, int64_t vocab_size, uint64_t seed) {
  // Floyd's algorithm draws without repetition in one pass.
  std::vector<bool> is_drawn(static_cast<size_t>(vocab_size), false);
  std::vector<int32_t> drawn;
  const int64_t draws = std::min(num_negatives, vocab_size);
  const Philox random{seed, kNegativeStream};
  for (int64_t j = vocab_size - draws; j < vocab_size; ++j) {
    const uint64_t word = random.word(static_cast<uint64_t>(j));
    const auto candidate = static_cast<size_t>((word * static_cast<uint64_t>(j + 1)) >> 32);
    const size_t row = is_drawn[candidate] ? static_cast<size_t>(j) : candidate;
    is_drawn[row] = true;
    drawn.push_back(static_cast<int32_t>(row));
  }
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

SampledIndices sample_indices(const int32_t* labels, int64_t num_rows, int64_t num_negatives, int64_t vocab_size,
                              uint64_t seed) {
  const std::vector<int32_t> drawn = draw_negatives(num_negatives, vocab_size, seed);
  std::vector<int32_t> distinct(labels, labels + num_rows);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  SampledIndices sampled;
  std::set_union(drawn.begin(), drawn.end(), distinct.begin(), distinct.end(), std::back_inserter(sampled.indices));
  for (int32_t row : sampled.indices) {
    sampled.allowed.push_back(std::binary_search(drawn.begin(), drawn.end(), row));
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    const auto found = std::lower_bound(sampled.indices.begin(), sampled.indices.end(), labels[r]);
    sampled.labels.push_back(static_cast<int32_t>(found - sampled.indices.begin()));
  }
  return sampled;
}

}  // namespace limbeck
