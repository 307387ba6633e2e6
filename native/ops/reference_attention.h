#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/attention.h"

namespace limbeck {

/// What attention.h defines, in plain loops over one number type: the op's specification, compared with in tests.
///   qkv, y, lse, maps  as in attention_forward; maps may be null
///   keep               null, or per map element the dropout factor: 0 or 1/(1 − probability)
template <typename T>
void reference_attention_forward(const AttentionShape& shape, const T* qkv, T* y, T* lse, T* maps, const T* keep) {
  const int64_t heads = shape.num_attention_heads;
  const int64_t kv_heads = shape.num_key_value_heads;
  const int64_t dim = shape.head_dim;
  const int64_t stride = (heads + 2 * kv_heads) * dim;
  const T scale = T(1) / std::sqrt(static_cast<T>(dim));
  int64_t map_offset = 0;
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    const int64_t first = shape.sequence_offsets[s];
    const int64_t t = shape.sequence_offsets[s + 1] - first;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv_head = h / (heads / kv_heads);
      for (int64_t i = 0; i < t; ++i, map_offset += t) {
        const int64_t num_keys = shape.causal ? i + 1 : t;
        const int64_t first_key =
            shape.sliding_window > 0 && i >= shape.sliding_window ? i + 1 - shape.sliding_window : 0;
        const T* query = qkv + (first + i) * stride + h * dim;
        std::vector<T> row(static_cast<size_t>(t), T(0));
        T largest = -std::numeric_limits<T>::infinity();
        for (int64_t j = first_key; j < num_keys; ++j) {
          const T* key = qkv + (first + j) * stride + (heads + kv_head) * dim;
          T score = 0;
          for (int64_t c = 0; c < dim; ++c) score += query[c] * key[c];
          row[j] = score * scale;
          if (row[j] > largest) largest = row[j];
        }
        T sum = 0;
        for (int64_t j = first_key; j < num_keys; ++j) sum += std::exp(row[j] - largest);
        const T row_lse = largest + std::log(sum);
        lse[(first + i) * heads + h] = row_lse;
        T* out = y + (first + i) * heads * dim + h * dim;
        for (int64_t c = 0; c < dim; ++c) out[c] = 0;
        for (int64_t j = 0; j < t; ++j) {
          const T probability = j >= first_key && j < num_keys ? std::exp(row[j] - row_lse) : T(0);
          if (maps) maps[map_offset + j] = probability;
          const T weight = keep ? probability * keep[map_offset + j] : probability;
          const T* value = qkv + (first + j) * stride + (heads + kv_heads + kv_head) * dim;
          for (int64_t c = 0; c < dim; ++c) out[c] += weight * value[c];
        }
      }
    }
  }
}

/// Σ KL(teacher ‖ student) over `count` map elements, 0·log 0 = 0; over those that the student sees.
template <typename T>
T reference_map_divergence(const T* teacher, const T* student, int64_t count) {
  T sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (teacher[i] > 0 && student[i] > 0) sum += teacher[i] * (std::log(teacher[i]) - std::log(student[i]));
  }
  return sum;
}

}  // namespace limbeck
