#include <cmath>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/attention.h"
#include "cuda/attention_tiles.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

/// More keys than any sequence has.
constexpr int kAllKeys = 1 << 30;

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
}

}  // namespace

bool fits_flash(const AttentionShape& shape, std::initializer_list<const void*> pointers) {
  bool is_aligned = shape.head_dim % 8 == 0 && shape.head_dim <= kLargestFlashDim;
  for (const void* pointer : pointers) is_aligned = is_aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  return is_aligned;
}

AttentionTask attention_task(const AttentionShape& shape, const AttentionDropout& dropout) {
  check_shape(shape, dropout.probability);
  AttentionTask task{};
  task.num_tokens = shape.num_tokens;
  task.sequence_offsets = shape.sequence_offsets;
  task.map_offsets = shape.map_offsets;
  task.num_heads = static_cast<int>(shape.num_attention_heads);
  task.num_kv_heads = static_cast<int>(shape.num_key_value_heads);
  task.head_dim = static_cast<int>(shape.head_dim);
  task.ahead = shape.causal ? 0 : kAllKeys;
  task.window =
      shape.sliding_window > 0 && shape.sliding_window < kAllKeys ? static_cast<int>(shape.sliding_window) : kAllKeys;
  task.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  task.keep_scale = 1;
  if (dropout.probability > 0) {
    const DropoutRule rule(dropout.probability);
    task.seed = dropout.seed;
    task.stream = dropout.stream;
    task.first_map_element = static_cast<uint64_t>(dropout.first_map_element);
    task.drop_threshold = rule.threshold;
    task.keep_scale = rule.scale;
  }
  return task;
}

unsigned attention_blocks(AttentionTask& task, const AttentionShape& shape, int64_t num_heads, int64_t rows) {
  const int64_t blocks_per_head = divide_up(shape.max_length, rows);
  task.blocks_per_head = static_cast<int>(blocks_per_head);
  const int64_t blocks = blocks_per_head * num_heads * shape.num_sequences;
  if (blocks > INT32_MAX) throw Error("ERR_INVALID_ARGUMENT", "attention over too many sequences and heads at once");
  return static_cast<unsigned>(blocks);
}

template <typename T>
void attention_forward(Context& context, const AttentionShape& shape, const T* qkv, T* y, float* lse,
                       const AttentionDropout& dropout) {
  const AttentionTask task = attention_task(shape, dropout);
  if constexpr (std::is_same_v<T, bf16>) {
    if (fits_flash(shape, {qkv, y})) return flash_attention_forward(context, task, shape, qkv, y, lse);
  }
  plain_attention_forward(context, task, shape, qkv, y, lse);
}

template <typename T>
void attention_maps(Context& context, const AttentionShape& shape, const T* qkv, const float* lse, float* maps) {
  attention_scores(context, attention_task(shape, {}), shape, qkv, qkv + shape.num_attention_heads * shape.head_dim,
                   (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim, lse, maps);
}

template <typename T>
void attention_backward(Context& context, const AttentionShape& shape, const T* qkv, const T* y, const float* lse,
                        const T* d_y, T* d_qkv, const float* teacher_maps, float map_loss_scale,
                        const AttentionDropout& dropout, float* d_bias, PendingSums* pending) {
  AttentionTask task = attention_task(shape, dropout);
  task.teacher_maps = teacher_maps;
  task.map_loss_scale = teacher_maps ? map_loss_scale : 0;
  bool is_done = false;
  if constexpr (std::is_same_v<T, bf16>) {
    if (fits_flash(shape, {qkv, y, d_y, d_qkv})) {
      if (flash_attention_backward(context, task, shape, qkv, y, lse, d_y, d_qkv, d_bias, pending)) return;
      is_done = true;
    }
  }
  if (!is_done) plain_attention_backward(context, task, shape, qkv, y, lse, d_y, d_qkv);
  if (d_bias == nullptr) return;
  const int64_t keys = shape.num_attention_heads * shape.head_dim,
                key_width = shape.num_key_value_heads * shape.head_dim;
  const int64_t width = keys + 2 * key_width;
  add_row_sums<T>(context, d_qkv, width, shape.num_tokens, width, d_bias, pending, {keys, keys + key_width});
}

template void attention_forward(Context&, const AttentionShape&, const float*, float*, float*, const AttentionDropout&);
template void attention_forward(Context&, const AttentionShape&, const bf16*, bf16*, float*, const AttentionDropout&);
template void attention_maps(Context&, const AttentionShape&, const float*, const float*, float*);
template void attention_maps(Context&, const AttentionShape&, const bf16*, const float*, float*);
template void attention_backward(Context&, const AttentionShape&, const float*, const float*, const float*,
                                 const float*, float*, const float*, float, const AttentionDropout&, float*,
                                 PendingSums*);
template void attention_backward(Context&, const AttentionShape&, const bf16*, const bf16*, const float*, const bf16*,
                                 bf16*, const float*, float, const AttentionDropout&, float*, PendingSums*);

}  // namespace limbeck::cuda
