#include "train/sampled_indices.h"

#include <algorithm>

#include "core/rng.h"

namespace limbeck {

namespace {
constexpr uint64_t kNegativeStream = uint64_t{1} << 41;  // away from the dropout masks
}

SampledIndices sample_indices(const int32_t* labels, int64_t num_rows, int64_t num_negatives, int64_t vocab_size,
                              uint64_t seed) {
  // Marks by row: bit 0 = negative, bit 1 = label. Floyd's algorithm draws without repetition in one pass.
  std::vector<uint8_t> marks(static_cast<size_t>(vocab_size), 0);
  const int64_t draws = std::min(num_negatives, vocab_size);
  const Philox random{seed, kNegativeStream};
  for (int64_t j = vocab_size - draws; j < vocab_size; ++j) {
    const uint64_t word = random.word(static_cast<uint64_t>(j));
    const auto candidate = static_cast<size_t>((word * static_cast<uint64_t>(j + 1)) >> 32);
    const size_t drawn = (marks[candidate] & 1) != 0 ? static_cast<size_t>(j) : candidate;
    marks[drawn] |= 1;
  }
  for (int64_t r = 0; r < num_rows; ++r) marks[static_cast<size_t>(labels[r])] |= 2;

  SampledIndices sampled;
  std::vector<int32_t> position(static_cast<size_t>(vocab_size), -1);
  for (int64_t v = 0; v < vocab_size; ++v) {
    const uint8_t mark = marks[static_cast<size_t>(v)];
    if (mark == 0) continue;
    position[static_cast<size_t>(v)] = static_cast<int32_t>(sampled.indices.size());
    sampled.indices.push_back(static_cast<int32_t>(v));
    sampled.allowed.push_back(mark & 1);
  }
  sampled.labels.resize(static_cast<size_t>(num_rows));
  for (int64_t r = 0; r < num_rows; ++r) {
    sampled.labels[static_cast<size_t>(r)] = position[static_cast<size_t>(labels[r])];
  }
  return sampled;
}

}  // namespace limbeck
