#include "train/sampled_table.h"

#include <cstring>

namespace limbeck {

SampledTable sample_table(Arena& arena, const OutputTable& table, const SampledIndices& sampled, int64_t hidden_size) {
  const int64_t count = static_cast<int64_t>(sampled.indices.size());
  float* weight = arena.allocate<float>(count * hidden_size);
  float* bias = table.bias != nullptr ? arena.allocate<float>(count) : nullptr;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t row = sampled.indices[static_cast<size_t>(c)];
    std::memcpy(weight + c * hidden_size, table.weight + row * hidden_size,
                static_cast<size_t>(hidden_size) * sizeof(float));
    if (bias != nullptr) bias[c] = table.bias[row];
  }
  return {weight, bias};
}

void scatter_table_gradient(const SampledIndices& sampled, const float* d_sampled, const float* d_sampled_bias,
                            float* d_table, float* d_bias, int64_t hidden_size) {
  for (size_t c = 0; c < sampled.indices.size(); ++c) {
    float* target = d_table + sampled.indices[c] * hidden_size;
    const float* source = d_sampled + static_cast<int64_t>(c) * hidden_size;
    for (int64_t j = 0; j < hidden_size; ++j) target[j] += source[j];
    if (d_bias != nullptr) d_bias[sampled.indices[c]] += d_sampled_bias[c];
  }
}

}  // namespace limbeck
