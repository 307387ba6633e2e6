#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model/transformer.h"
#include "ops/context.h"

namespace limbeck {

/// kNone keeps no state: gradients alone.
enum class OptimizerKind { kAdamW, kSgd, kNone };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
  float weight_decay = 0;   // decoupled, on tensors of rank ≥ 2 only
  float momentum = 0;       // SGD
  float max_grad_norm = 0;  // 0 = no clipping
};

/// Weights of the five terms: w_ce·CE + w_kd·τ²·KL + w_h·MSE + w_a·KL of attention maps + w_r·KL of value relations.
struct LossWeights {
  float ce = 1, kd = 0, hidden = 0, attention = 0, relation = 0;
  float temperature = 1;
  float fusion = 1;  // see LossHeadOptions
  float gate = 1;
};

/// What a teacher said about the tokens of the batch: a model to run on it, or arrays extracted before.
struct TeacherSignal {
  float weight = 1;  // of its part in every term
  const Transformer* model = nullptr;
  std::vector<std::pair<int64_t, int64_t>> layer_map;  // student block, teacher block; from 1
  // One entry a pair of layer_map, or none.
  std::vector<const float*> hidden;      // [N, teacher_hidden_size]
  std::vector<const float*> attentions;  // Σ H·t²
  std::vector<const float*> relations;   // Σ relation_heads·t²
  int64_t relation_heads = 0;            // divides KV·hd of student and teacher
  int64_t teacher_hidden_size = 0;       // of `hidden`
  // Logits: at most one form. All have N rows; rows without a label are not read. A teacher without logits has no part
  // in the kd term, one without a layer map none in those of layers.
  const float* dense_logits = nullptr;   // [N, V]
  const float* logits_hidden = nullptr;  // [N, head's hidden size], with `head`
  const Transformer* head = nullptr;
  const int32_t* top_k_indices = nullptr;  // [N, top_k], see ops/loss_head.h for lists that are shorter
  const float* top_k_values = nullptr;     // [N, top_k]
  const float* log_sum_exp = nullptr;      // [N]
  int64_t top_k = 0;
  const int32_t* classes = nullptr;  // [V] or null: the lists name classes of tokens, see ops/loss_head.h
  int64_t num_classes = 0;
};

constexpr int32_t kIgnoredLabel = -100;

struct StepInputs {
  Batch batch;
  const int32_t* labels;  // [N], -100 = ignored
  float learning_rate = 0;
  int64_t dropout_seed = -1;  // < 0 = no dropout
  LossWeights weights;
  std::vector<TeacherSignal> teachers;
  int64_t sampled_negatives = 0;  // 0 = full softmax
  /// Whole sequences of at most so many tokens are computed at once, and their gradients added up; 0 = all at once. A
  /// longer sequence is computed alone.
  int64_t micro_batch_tokens = 0;
  /// Keep the inputs of the blocks alone and compute the rest again on the way back: the same bits, see ForwardOptions.
  bool activation_checkpointing = false;
  /// Tokens and labels that losses are averaged over: those of the whole step. MicroBatch sets them.
  int64_t step_tokens = 0, step_labels = 0;
};

/// Each term before its weight, summed over teachers by theirs; `loss` is the weighted sum.
struct StepResult {
  double loss = 0, ce = 0, kd = 0, hidden = 0, attention = 0, relation = 0;
  double grad_norm = 0;  // before clipping
  int64_t num_labels = 0;
};

/// What a step checks before it computes anything: ids, labels, layers, and that the teacher says what the losses need.
/// Reads the configuration of the models alone. Throws Error("ERR_INVALID_ARGUMENT"), Error("ERR_SHAPE_MISMATCH").
void check_step(const Transformer& model, const StepInputs& inputs);

/// Learned projection of the hidden loss: h_student·weightᵀ is compared with h_teacher.
struct Projection {
  int64_t rows = 0, columns = 0;  // d_teacher, d_student
  AlignedFloats weight, gradient, first, second;
  int64_t count() const { return rows * columns; }
};

/// Losses, gradients and the optimiser of one model.
class Trainer {
 public:
  Trainer(std::shared_ptr<Transformer> model, const OptimizerOptions& options);

  /// Loss and gradients (=, into those of what is trainable and the projections'); parameters stay. Throws
  /// Error("ERR_INVALID_ARGUMENT") when the model got or lost an adapter since the trainer was made, and as
  /// check_step().
  StepResult compute_gradients(Context& context, Arena& arena, const StepInputs& inputs);
  /// The same, then one update. Throws Error("ERR_NOT_FINITE"), parameters untouched, when loss or norm is not finite.
  StepResult step(Context& context, Arena& arena, const StepInputs& inputs);

  Transformer& model() { return *model_; }
  const Transformer& model() const { return *model_; }
  /// Of the last compute_gradients(), or of the last of its micro batches; valid until its arena is reset. With
  /// activation_checkpointing, all blocks have the buffers of one.
  const Activations& activations() const { return activations_; }
  /// Sized by the first call for `index`; the entries of the teachers' layer maps, one after the other, use one each.
  Projection& projection(size_t index, int64_t rows, int64_t columns);
  std::vector<Projection>& projections() { return projections_; }

  int64_t step_count() const { return step_count_; }
  void set_step_count(int64_t step_count) { step_count_ = step_count; }
  /// Floats of a moment, in the layout of what was trainable when the trainer was made.
  int64_t flat_count() const { return flat_count_; }
  /// First and second moments; SGD's buffer is `first`.
  float* first() { return first_.get(); }
  float* second() { return second_.get(); }

 private:
  /// A teacher in a step, and its pass where it is a model.
  struct Taught {
    const TeacherSignal* signal;
    Activations activations;
    bool has_run;
    size_t first_projection;
  };
  /// Adds the gradients of a micro batch to those that are there, and its terms, not yet weighted, to `result`.
  void add_gradients(Context& context, Arena& arena, const StepInputs& inputs, StepResult& result);
  std::vector<Taught> run_teachers(Context& context, Arena& arena, const StepInputs& inputs) const;
  /// Value of cross-entropy and distillation; d_final [N, d] +=.
  void head_loss(Context& context, Arena& arena, const StepInputs& inputs, const std::vector<Taught>& teachers,
                 float* d_final, float* d_word_table, StepResult& result);
  double hidden_loss(Context& context, Arena& arena, const StepInputs& inputs, const Taught& teacher,
                     const float** d_hidden, float* d_final);
  double attention_loss(Context& context, Arena& arena, const StepInputs& inputs, const std::vector<Taught>& teachers,
                        const float** targets, float* scale);
  double relation_loss(Context& context, Arena& arena, const StepInputs& inputs, const Taught& teacher,
                       const float** d_values);
  void update(Context& context, const StepInputs& inputs, double grad_norm);

  std::shared_ptr<Transformer> model_;
  OptimizerOptions options_;
  Activations activations_{};
  int64_t flat_count_;
  uint64_t adapter_version_;
  AlignedFloats first_, second_;  // [flat_count]
  std::vector<Projection> projections_;
  int64_t step_count_ = 0;
};

}  // namespace limbeck
