#include "train/sampled_indices.h"

#include <algorithm>
#include <iterator>

#include "core/rng.h"

namespace limbeck {

namespace {
constexpr uint64_t kNegativeStream = uint64_t{1} << 41;  // away from the dropout masks
}

std::vector<int32_t> draw_negatives(int64_t num_negatives, int64_t vocab_size, uint64_t seed) {
  // Floyd's algorithm draws without repetition in one pass; the marks, 64 rows a word, then give them in order.
  std::vector<uint64_t> marks(static_cast<size_t>((vocab_size + 63) / 64), 0);
  const auto is_marked = [&](uint64_t row) { return (marks[row / 64] >> (row % 64) & 1) != 0; };
  const int64_t draws = std::min(num_negatives, vocab_size);
  const Philox random{seed, kNegativeStream};
  uint32_t words[4] = {};
  for (int64_t j = vocab_size - draws; j < vocab_size; ++j) {
    const auto index = static_cast<uint64_t>(j);
    if (j == vocab_size - draws || index % 4 == 0) random.block(index / 4, words);
    const uint64_t candidate = (uint64_t{words[index % 4]} * (index + 1)) >> 32;
    const uint64_t row = is_marked(candidate) ? index : candidate;
    marks[row / 64] |= uint64_t{1} << (row % 64);
  }
  std::vector<int32_t> drawn;
  drawn.reserve(static_cast<size_t>(draws));
  for (size_t w = 0; w < marks.size(); ++w) {
    for (uint64_t rest = marks[w]; rest != 0; rest &= rest - 1) {
      drawn.push_back(static_cast<int32_t>(64 * w) + __builtin_ctzll(rest));
    }
  }
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
