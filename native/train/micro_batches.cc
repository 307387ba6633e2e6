#include "train/micro_batches.h"

namespace limbeck {

namespace {

/// What a teacher says from token `tokens` on, before which the lengths of the sequences, squared, sum to `squares`.
TeacherSignal signal_from(const TeacherSignal& whole, const TransformerConfig& student, int64_t tokens,
                          int64_t squares) {
  TeacherSignal part = whole;
  for (const float*& array : part.hidden) array += tokens * whole.teacher_hidden_size;
  for (const float*& array : part.attentions) array += student.num_attention_heads * squares;
  for (const float*& array : part.relations) array += whole.relation_heads * squares;
  if (whole.dense_logits != nullptr) part.dense_logits += tokens * student.vocab_size;
  if (whole.logits_hidden != nullptr) part.logits_hidden += tokens * whole.head->config().hidden_size;
  if (whole.top_k > 0) {
    part.top_k_indices += tokens * whole.top_k;
    part.top_k_values += tokens * whole.top_k;
    part.log_sum_exp += tokens;
  }
  return part;
}

}  // namespace

MicroBatch::MicroBatch(const StepInputs& step, const TransformerConfig& student, int64_t first, int64_t end)
    : inputs_(step) {
  const Batch& whole = step.batch;
  Batch& batch = inputs_.batch;
  const int32_t begin = whole.sequence_offsets[first];
  for (int64_t s = first; s <= end; ++s) offsets_.push_back(whole.sequence_offsets[s] - begin);
  batch.num_sequences = end - first;
  batch.num_tokens = offsets_.back();
  batch.input_ids += begin;
  if (batch.token_type_ids != nullptr) batch.token_type_ids += begin;
  for (int64_t s = 0; s < first; ++s) {
    const int64_t length = int64_t{whole.sequence_offsets[s + 1]} - whole.sequence_offsets[s];
    batch.squares_before += length * length;
  }
  batch.tokens_before = begin;
  inputs_.labels += begin;
  inputs_.step_tokens = whole.num_tokens;
  inputs_.step_labels = 0;
  for (int64_t i = 0; i < whole.num_tokens; ++i) inputs_.step_labels += step.labels[i] != kIgnoredLabel;
  for (TeacherSignal& signal : inputs_.teachers) signal = signal_from(signal, student, begin, batch.squares_before);
}

StepInputs MicroBatch::inputs() const {
  StepInputs inputs = inputs_;
  inputs.batch.sequence_offsets = offsets_.data();
  return inputs;
}

std::vector<MicroBatch> split_step(const StepInputs& step, const TransformerConfig& student) {
  const int32_t* offsets = step.batch.sequence_offsets;
  std::vector<MicroBatch> parts;
  int64_t first = 0;
  for (int64_t end = 1; end <= step.batch.num_sequences; ++end) {
    const bool is_last = end == step.batch.num_sequences;
    const bool fits_next = !is_last && (step.micro_batch_tokens == 0 ||
                                        int64_t{offsets[end + 1]} - offsets[first] <= step.micro_batch_tokens);
    if (fits_next) continue;
    parts.emplace_back(step, student, first, end);
    first = end;
  }
  return parts;
}

}  // namespace limbeck
