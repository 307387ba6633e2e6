#pragma once

#include <memory>
#include <vector>

#include "cuda/device_batch.h"
#include "cuda/launch.h"
#include "cuda/trainer.h"

namespace limbeck::cuda {

enum Term { kCe, kKd, kHidden, kAttention, kRelation };
static_assert(kRelation + 1 == kNumTerms);

/// A device copy of what the host has.
template <typename T>
T* to_device(Context& context, const T* host, int64_t count) {
  T* device = context.arena.allocate<T>(count);
  copy_to_device(context, device, host, count);
  return device;
}

/// See trainer.h. trainer.cc takes it through its stages, training_losses.cc computes its losses.
template <typename T>
struct TransformerTrainer<T>::Step {
  static constexpr int64_t kMaxGraphTokens = 8192;  // more keep the GPU busy without a graph

  Step(const ApiStep& request, bool is_first, bool is_last)
      : request(request), teacher(request.teacher), is_first(is_first), is_last(is_last) {}

  const ApiStep& request;
  const ApiTeacher* teacher;
  const bool is_first, is_last;       // of the parts of the step
  std::vector<int32_t> rows, labels;  // [R] tokens with a label, and the labels
  StepScalars scalars{};
  std::vector<int32_t> drawn;          // [C] negatives of sampled softmax, ascending
  std::vector<int32_t> drawn_columns;  // [R] which of them is the label, −1 = none
  std::vector<int32_t> top_k_indices;
  std::vector<float> top_k_values, log_sum_exp;
  // A teacher of another family numbers the positions of a batch its own way, and may have token types.
  std::unique_ptr<DeviceBatch> batch, taught_batch;
  bool is_taught_beside = false;  // the teacher's pass is on the side lane

  // On the device, made by each pass.
  StepScalars* device_scalars = nullptr;
  const int32_t* device_rows = nullptr;           // [R]
  const int32_t* device_labels = nullptr;         // [R]
  const int32_t* device_drawn = nullptr;          // [C]
  const int32_t* device_drawn_columns = nullptr;  // [R]
  std::unique_ptr<PendingOrder> label_order;      // of sampled softmax
  Activations<T> student{}, taught{};
  BackwardInputs<T> backward{};
  float* d_output_table = nullptr;  // [V, d]
  float* d_output_bias = nullptr;   // [V] or null
  StepTerms terms{};
  double means[kNumTerms] = {};  // what turns a sum into its term

  Batch host_batch() const {
    const ApiBatch& all = request.batch;
    return {all.input_ids, all.sequence_offsets, all.token_type_ids, all.num_tokens, all.num_sequences,
            nullptr,       all.tokens_before,    all.squares_before};
  }
  bool is_whole() const { return is_first && is_last; }
  bool has_head_loss() const { return !rows.empty() && (request.ce != 0 || request.kd != 0); }
  bool has_teacher_model() const { return teacher != nullptr && teacher->model != nullptr; }
  bool reads_layers() const { return request.hidden != 0 || request.attention != 0 || request.relation != 0; }
  bool reads_teacher_model() const { return has_teacher_model() && (request.kd != 0 || reads_layers()); }
  const Transformer<T>& teacher_model() const { return static_cast<const Transformer<T>&>(*teacher->model); }
  int64_t teacher_hidden_size() const {
    return has_teacher_model() ? teacher->model->config.hidden_size : teacher->teacher_hidden_size;
  }
  /// Not where the host has work while the GPU runs: arrays to copy in the midst, orders of many rows to make. Small
  /// steps are those that a graph makes faster.
  bool is_graphable() const {
    return is_whole() && drawn.empty() && request.batch.num_tokens <= kMaxGraphTokens &&
           (teacher == nullptr || teacher->model != nullptr);
  }
  /// Graphs are of the main lane alone.
  bool can_be_taught_beside() const { return reads_teacher_model() && !is_graphable(); }
  /// Whether the gradient of embeddings.word is zero in all rows but those of inputs, labels and negatives.
  bool touches_few(const TransformerConfig& config) const {
    return is_whole() && !drawn.empty() && config.item_feature_size == 0 && config.hidden_size % 4 == 0;
  }
  /// Whether a product of the loss head gives the gradient of the output table, which then need not be zeros before.
  /// The table v + A·u of items with features has a gradient of its own in each part.
  bool sets_output_table(const TransformerConfig& config) const {
    const bool is_fresh = is_first || (config.tie_word_embeddings && config.item_feature_size > 0);
    return is_fresh && has_head_loss() && drawn.empty();
  }
  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

}  // namespace limbeck::cuda
