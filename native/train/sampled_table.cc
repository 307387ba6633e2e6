#include "train/sampled_table.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/rng.h"

namespace limbeck {

namespace {
constexpr uint64_t kNegativeStream = uint64_t{1} << 41;  // away from the dropout masks
}

SampledTable sample_table(Arena& arena, const OutputTable& table, const int32_t* labels, int64_t num_rows,
                          int64_t num_negatives, int64_t vocab_size, int64_t hidden_size, uint64_t seed) {
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

  std::vector<int32_t> position(static_cast<size_t>(vocab_size), -1);
  int64_t count = 0;
  for (int64_t v = 0; v < vocab_size; ++v) {
    if (marks[static_cast<size_t>(v)] != 0) position[static_cast<size_t>(v)] = static_cast<int32_t>(count++);
  }
  int32_t* indices = arena.allocate<int32_t>(count);
  float* weight = arena.allocate<float>(count * hidden_size);
  float* bias = table.bias != nullptr ? arena.allocate<float>(count) : nullptr;
  uint8_t* allowed = arena.allocate<uint8_t>(count);
  for (int64_t v = 0; v < vocab_size; ++v) {
    const int32_t c = position[static_cast<size_t>(v)];
    if (c < 0) continue;
    indices[c] = static_cast<int32_t>(v);
    allowed[c] = marks[static_cast<size_t>(v)] & 1;
    std::memcpy(weight + c * hidden_size, table.weight + v * hidden_size,
                static_cast<size_t>(hidden_size) * sizeof(float));
    if (bias != nullptr) bias[c] = table.bias[v];
  }
  int32_t* sampled_labels = arena.allocate<int32_t>(num_rows);
  for (int64_t r = 0; r < num_rows; ++r) sampled_labels[r] = position[static_cast<size_t>(labels[r])];
  return {count, indices, weight, bias, sampled_labels, allowed};
}

void scatter_table_gradient(const SampledTable& sampled, const float* d_sampled, const float* d_sampled_bias,
                            float* d_table, float* d_bias, int64_t hidden_size) {
  for (int64_t c = 0; c < sampled.count; ++c) {
    float* target = d_table + sampled.indices[c] * hidden_size;
    for (int64_t j = 0; j < hidden_size; ++j) target[j] += d_sampled[c * hidden_size + j];
    if (d_bias != nullptr) d_bias[sampled.indices[c]] += d_sampled_bias[c];
  }
}

}  // namespace limbeck
