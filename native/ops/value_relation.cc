#include "ops/value_relation.h"

#include <cstring>

namespace limbeck {

namespace {

/// The columns that attention reads, with the values as queries and keys too; what it attends to does not matter.
struct SelfAttention {
  int64_t num_rows, width;
  float* qkv;  // [N, 3·width]
  float* y;    // [N, width]
  float* lse;  // [N, A]
};

SelfAttention attend(Context& context, const AttentionShape& shape, const float* values, float* maps) {
  SelfAttention a{};
  a.num_rows = shape.sequence_offsets[shape.num_sequences];
  a.width = shape.num_attention_heads * shape.head_dim;
  a.qkv = context.scratch.allocate<float>(a.num_rows * 3 * a.width);
  a.y = context.scratch.allocate<float>(a.num_rows * a.width);
  a.lse = context.scratch.allocate<float>(a.num_rows * shape.num_attention_heads);
  for (int64_t i = 0; i < a.num_rows; ++i) {
    for (int64_t copy = 0; copy < 3; ++copy) {
      std::memcpy(a.qkv + (i * 3 + copy) * a.width, values + i * a.width, static_cast<size_t>(a.width) * sizeof(float));
    }
  }
  attention_forward(context, shape, a.qkv, a.y, a.lse, maps, 0, 0, 0);
  return a;
}

}  // namespace

void value_relation_forward(Context& context, const AttentionShape& shape, const float* values, float* maps) {
  const Arena::Scope scope(context.scratch);
  attend(context, shape, values, maps);
}

void value_relation_backward(Context& context, const AttentionShape& shape, const float* values,
                             const float* teacher_maps, float scale, float* d_values) {
  const Arena::Scope scope(context.scratch);
  const SelfAttention a = attend(context, shape, values, nullptr);
  float* d_y = context.scratch.allocate<float>(a.num_rows * a.width);
  float* d_qkv = context.scratch.allocate<float>(a.num_rows * 3 * a.width);
  std::memset(d_y, 0, static_cast<size_t>(a.num_rows * a.width) * sizeof(float));
  attention_backward(context, shape, a.qkv, a.y, a.lse, d_y, d_qkv, teacher_maps, scale, 0, 0, 0);
  for (int64_t i = 0; i < a.num_rows; ++i) {
    const float *d_query = d_qkv + i * 3 * a.width, *d_key = d_query + a.width;
    for (int64_t c = 0; c < a.width; ++c) d_values[i * a.width + c] = d_query[c] + d_key[c];
  }
}

}  // namespace limbeck
