#include "ops/attention.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "cpu/attention.h"
#include "cpu/kernels.h"

namespace limbeck {
namespace {

int64_t sequence_length(const AttentionShape& shape, int64_t sequence) {
  return shape.sequence_offsets[sequence + 1] - shape.sequence_offsets[sequence];
}

void check_shape(const AttentionShape& shape, float dropout_probability) {
  if (shape.num_key_value_heads < 1 || shape.head_dim < 1 || shape.num_attention_heads < 1 ||
      shape.num_attention_heads % shape.num_key_value_heads != 0) {
    throw Error("ERR_INVALID_ARGUMENT",
                "attention expects the query heads to be a multiple of the key-value heads, got " +
                    std::to_string(shape.num_attention_heads) + " and " + std::to_string(shape.num_key_value_heads));
  }
  if (!(dropout_probability >= 0 && dropout_probability < 1)) {
    throw Error("ERR_INVALID_ARGUMENT",
                "attention dropout must be in [0, 1), got " + std::to_string(dropout_probability));
  }
  if (shape.sliding_window < 0 || (shape.sliding_window > 0 && !shape.causal)) {
    throw Error("ERR_INVALID_ARGUMENT", "a sliding window must be positive, and attention causal");
  }
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    if (sequence_length(shape, s) < 0) {
      throw Error("ERR_INVALID_ARGUMENT", "sequence offsets must not fall; they do at sequence " + std::to_string(s));
    }
  }
}

/// First map element of each sequence, and after the last.
const int64_t* map_offsets(Arena& scratch, const AttentionShape& shape) {
  int64_t* offsets = scratch.allocate<int64_t>(shape.num_sequences + 1);
  offsets[0] = 0;
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    const int64_t t = sequence_length(shape, s);
    offsets[s + 1] = offsets[s] + shape.num_attention_heads * t * t;
  }
  return offsets;
}

/// Calls run(task, sequence, scratch) for every (sequence, key-value head) in parallel.
template <typename Run>
void for_each_task(Context& context, const AttentionShape& shape, const float* qkv, const int64_t* offsets,
                   float dropout_probability, uint64_t seed, uint64_t stream, Run&& run) {
  int64_t longest = 0;
  for (int64_t s = 0; s < shape.num_sequences; ++s) longest = std::max(longest, sequence_length(shape, s));
  if (longest == 0) return;
  // A multiple of 16 floats, so that each worker's part keeps the arena's alignment.
  const int64_t per_worker = (attention_scratch_floats(longest, shape.head_dim) + 15) / 16 * 16;
  float* scratch = context.scratch.allocate<float>(per_worker * context.pool.num_threads());
  const int64_t row_stride = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim;
  context.pool.parallel_for(shape.num_sequences * shape.num_key_value_heads, [&](int64_t index, int worker) {
    const int64_t sequence = index / shape.num_key_value_heads;
    const int64_t length = sequence_length(shape, sequence);
    if (length == 0) return;
    const AttentionTask task{qkv + shape.sequence_offsets[sequence] * row_stride, length, shape.num_attention_heads,
                             shape.num_key_value_heads, shape.head_dim, index % shape.num_key_value_heads, shape.causal,
                             // What sees everything is spared the bounds of the window.
                             shape.sliding_window < length ? shape.sliding_window : 0, dropout_probability, seed,
                             stream, static_cast<uint64_t>(shape.first_map_element + offsets[sequence])};
    run(task, sequence, scratch + worker * per_worker);
  });
}

}  // namespace

int64_t attention_map_floats(const AttentionShape& shape) {
  int64_t count = 0;
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    count += shape.num_attention_heads * sequence_length(shape, s) * sequence_length(shape, s);
  }
  return count;
}

void attention_forward(Context& context, const AttentionShape& shape, const float* qkv, float* y, float* lse,
                       float* maps, float dropout_probability, uint64_t seed, uint64_t stream) {
  check_shape(shape, dropout_probability);
  Arena::Scope scope(context.scratch);
  const int64_t* offsets = map_offsets(context.scratch, shape);
  const CpuKernels& kernels = cpu_kernels();
  for_each_task(context, shape, qkv, offsets, dropout_probability, seed, stream,
                [&](const AttentionTask& task, int64_t sequence, float* scratch) {
                  const int64_t row = shape.sequence_offsets[sequence];
                  kernels.attention_forward(task, y + row * shape.num_attention_heads * shape.head_dim,
                                            lse ? lse + row * shape.num_attention_heads : nullptr,
                                            maps ? maps + offsets[sequence] : nullptr, scratch);
                });
}

void attend_row(Context& context, const AttentionShape& shape, const float* queries, const float* keys,
                const float* values, int64_t row_stride, int64_t length, float* y) {
  const Arena::Scope scope(context.scratch);
  if (shape.sliding_window > 0 && shape.sliding_window < length) {
    keys += (length - shape.sliding_window) * row_stride;
    values += (length - shape.sliding_window) * row_stride;
    length = shape.sliding_window;
  }
  float* scores = context.scratch.allocate<float>((length + 15) / 16 * 16);
  const int64_t group = shape.num_attention_heads / shape.num_key_value_heads, dim = shape.head_dim;
  for (int64_t head = 0; head < shape.num_attention_heads; ++head) {
    const int64_t column = head / group * dim;
    cpu_kernels().attend_row(queries + head * dim, keys + column, values + column, row_stride, length, dim,
                             y + head * dim, scores);
  }
}

void attention_backward(Context& context, const AttentionShape& shape, const float* qkv, const float* y,
                        const float* lse, const float* d_y, float* d_qkv, const float* teacher_maps,
                        float map_loss_scale, float dropout_probability, uint64_t seed, uint64_t stream) {
  check_shape(shape, dropout_probability);
  Arena::Scope scope(context.scratch);
  const int64_t* offsets = map_offsets(context.scratch, shape);
  const CpuKernels& kernels = cpu_kernels();
  const int64_t y_stride = shape.num_attention_heads * shape.head_dim;
  const int64_t qkv_stride = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim;
  for_each_task(context, shape, qkv, offsets, dropout_probability, seed, stream,
                [&](const AttentionTask& task, int64_t sequence, float* scratch) {
                  const int64_t row = shape.sequence_offsets[sequence];
                  kernels.attention_backward(task, y + row * y_stride, lse + row * shape.num_attention_heads,
                                             d_y + row * y_stride, d_qkv + row * qkv_stride,
                                             teacher_maps ? teacher_maps + offsets[sequence] : nullptr, map_loss_scale,
                                             scratch);
                });
}

double attention_map_divergence(Context& context, const AttentionShape& shape, const float* teacher_maps,
                                const float* student_maps) {
  check_shape(shape, 0);
  Arena::Scope scope(context.scratch);
  const int64_t* offsets = map_offsets(context.scratch, shape);
  double* sums = context.scratch.allocate<double>(shape.num_sequences);
  const CpuKernels& kernels = cpu_kernels();
  context.pool.parallel_for(shape.num_sequences, [&](int64_t sequence, int) {
    sums[sequence] = kernels.divergence(teacher_maps + offsets[sequence], student_maps + offsets[sequence],
                                        offsets[sequence + 1] - offsets[sequence]);
  });
  double total = 0;
  for (int64_t s = 0; s < shape.num_sequences; ++s) total += sums[s];
  return total;
}

}  // namespace limbeck
