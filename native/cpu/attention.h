#pragma once

#include <algorithm>
#include <cstdint>

namespace limbeck {

/// One sequence and one key-value head of packed attention, with the query heads that share it: the unit of work of the
/// attention kernels. Pointers of rows are at the sequence's first row; the layouts are those of ops/attention.h.
struct AttentionTask {
  const float* qkv;
  int64_t length;  // t
  int64_t num_attention_heads;
  int64_t num_key_value_heads;
  int64_t head_dim;
  int64_t key_value_head;
  bool causal;
  int64_t sliding_window;  // 0, or fewer than t rows
  float dropout_probability;
  uint64_t seed, stream;
  uint64_t first_map_element;  // of this sequence, as dropout counts them
};

/// Query rows handled at a time: a multiple of the register tile of 6 rows, evenly spread over the sequence, so that
/// the scores of one block (two of them backward) stay in the second-level cache.
inline int64_t attention_row_block(int64_t length) {
  const int64_t most = length <= 512 ? 96 : 48;
  const int64_t num_blocks = (length + most - 1) / most;
  return ((length + num_blocks - 1) / num_blocks + 5) / 6 * 6;
}

/// Scratch floats of one forward or backward task, enough for any instruction set, and for shorter sequences, too,
/// whose row blocks may have more rows.
inline int64_t attention_scratch_floats(int64_t length, int64_t head_dim) {
  constexpr int64_t kWidest = 16;
  const int64_t keys = (length + kWidest - 1) / kWidest * kWidest + 2 * kWidest;
  const int64_t width = (head_dim + kWidest - 1) / kWidest * kWidest;
  const int64_t rows = length <= 512 ? std::min<int64_t>((length + 5) / 6 * 6, 96) : 48;
  // transposed keys and values, three [keys, width] matrices, three row blocks of width, two of keys, a dropout row
  const int64_t floats = 5 * keys * width + 3 * rows * width + 2 * rows * keys + keys;
  return length <= 512 ? floats : std::max(floats, attention_scratch_floats(512, head_dim));
}

}  // namespace limbeck
