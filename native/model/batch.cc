#include "model/batch.h"

#include <string>

#include "core/error.h"

namespace limbeck {

namespace {

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

}  // namespace

void check_batch(const TransformerConfig& config, const Batch& batch) {
  if (batch.num_sequences < 1 || batch.num_tokens < 1) invalid("Expected at least one sequence with one token.");
  if (batch.sequence_offsets[0] != 0 || batch.sequence_offsets[batch.num_sequences] != batch.num_tokens) {
    invalid("sequenceOffsets must run from 0 to the number of tokens, " + std::to_string(batch.num_tokens) + ".");
  }
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const int64_t length = int64_t{batch.sequence_offsets[s + 1]} - batch.sequence_offsets[s];
    if (length < 1) invalid("Sequence " + std::to_string(s) + " is empty; sequenceOffsets must ascend strictly.");
    if (length > config.max_position_embeddings) {
      invalid("Sequence " + std::to_string(s) + " has " + std::to_string(length) + " tokens and the model takes " +
              std::to_string(config.max_position_embeddings) + ". Cut it.");
    }
  }
  for (int64_t i = 0; i < batch.num_tokens; ++i) {
    if (batch.input_vectors != nullptr) break;
    if (batch.input_ids[i] < 0 || batch.input_ids[i] >= config.vocab_size) {
      invalid("inputIds[" + std::to_string(i) + "] = " + std::to_string(batch.input_ids[i]) +
              " is outside the vocabulary of " + std::to_string(config.vocab_size) + ".");
    }
    if (batch.token_type_ids != nullptr &&
        (batch.token_type_ids[i] < 0 || batch.token_type_ids[i] >= config.type_vocab_size)) {
      invalid("tokenTypeIds[" + std::to_string(i) + "] is outside the " + std::to_string(config.type_vocab_size) +
              " token types.");
    }
  }
}

void fill_position_ids(const TransformerConfig& config, const Batch& batch, int32_t* position_ids) {
  const auto offset = static_cast<int32_t>(config.position_offset);
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    int32_t position = offset;
    for (int32_t i = batch.sequence_offsets[s]; i < batch.sequence_offsets[s + 1]; ++i) {
      const bool is_padding = offset > 0 && batch.input_vectors == nullptr && batch.input_ids[i] == offset - 1;
      position_ids[i] = is_padding ? offset - 1 : position++;
    }
  }
}

}  // namespace limbeck
