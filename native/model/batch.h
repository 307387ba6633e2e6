#pragma once

#include <cstdint>

#include "model/config.h"

namespace limbeck {

/// Sequences laid end to end: N tokens, S sequences, no padding.
struct Batch {
  const int32_t* input_ids;         // [N]
  const int32_t* sequence_offsets;  // [S + 1]
  const int32_t* token_type_ids;    // [N], or null = type 0
  int64_t num_tokens;               // N
  int64_t num_sequences;            // S
  /// [N, d] or null: rows that replace those of the word table; input_ids is not read then. Inference only.
  const float* input_vectors = nullptr;
  /// Where this is a part of a larger batch: tokens of the sequences before it, and their lengths squared, summed.
  /// Dropout masks are those of the larger batch.
  int64_t tokens_before = 0, squares_before = 0;
};

/// Throws Error("ERR_INVALID_ARGUMENT") unless the offsets ascend from 0 to N, no sequence is empty or longer than the
/// model's positions, and every id is inside its table.
void check_batch(const TransformerConfig& config, const Batch& batch);

/// Row of the position table of each token: from position_offset on in each sequence. RoBERTa's padding token has the
/// row before position 0, and is not counted.   position_ids [N] =
void fill_position_ids(const TransformerConfig& config, const Batch& batch, int32_t* position_ids);

}  // namespace limbeck
