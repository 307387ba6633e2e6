#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Logits over the same vocabulary from a teacher; at most one source is set.
struct TeacherLogits {
  const float* dense = nullptr;         // [·, vocab_size]
  const int64_t* dense_rows = nullptr;  // [num_rows] the row of `dense` for each row; null = the same
  const float* hidden = nullptr;        // [num_rows, teacher_hidden_size], logits = hidden·tableᵀ + bias
  const float* table = nullptr;         // [vocab_size, teacher_hidden_size]
  const float* bias = nullptr;          // [vocab_size] or null
  int64_t teacher_hidden_size = 0;
  /// [num_rows, top_k]. A row may list fewer: −1 fills it up. One that lists none is not distilled.
  const int32_t* top_k_indices = nullptr;
  const float* top_k_values = nullptr;  // [num_rows, top_k] logits
  const float* log_sum_exp = nullptr;   // [num_rows] over the whole vocabulary at temperature 1
  int64_t top_k = 0;
  /// Null, or [vocab_size]: the class of each column, in [0, num_classes). Then the top-k lists name classes, and the
  /// student's probability of a class is the sum over its columns.
  const int32_t* classes = nullptr;
  int64_t num_classes = 0;
  bool present() const { return dense != nullptr || hidden != nullptr || top_k > 0; }
};

struct LossHeadOptions {
  float ce_weight = 1;
  float kd_weight = 0;
  float temperature = 1;  // τ > 0
  /// Soft labels = softmax(((1 − fusion)·z_student + fusion·z_teacher)/τ), the student's part held constant.
  float fusion = 1;
  /// KD weight of a row whose label the teacher ranks worse than the student does; 1 = no gate.
  float gate = 1;
};

struct LossHeadResult {
  double ce_sum = 0;  // Σ over rows of −log softmax(z)[label]
  double kd_sum = 0;  // Σ over rows of gate·τ²·KL(soft labels ‖ softmax(z/τ))
};

/// Output projection and loss, chunk of rows by chunk of rows: no [num_rows, vocab_size] matrix is ever written.
/// The value is row_scale·(ce_weight·ce_sum + kd_weight·kd_sum); the gradients are of that value.
///   hidden   [num_rows, hidden_size]    rows with a label only
///   table    [vocab_size, hidden_size], bias [vocab_size] or null
///   labels   [num_rows] in [0, vocab_size), checked
///   d_hidden [num_rows, hidden_size] =  (null: value only), d_table [vocab_size, hidden_size] +=, d_bias += or null
///   allowed  null, or [vocab_size] bytes: 0 = this column takes part only in rows of which it is the label (sampled
///   softmax)
/// With top-k teacher logits, the mass outside the k counts as one remaining class: KL over k + 1 classes, where the
/// student's remaining class is log(1 − Σ_k p). Temperatures other than 1 (and k = vocab_size) use the k columns alone:
/// both sides are renormalised over them. Fusion mixes the log-probabilities of the same classes. For the gate, the
/// teacher ranks a label that it did not list k-th (counted from 0), the best rank it can have. All this holds for
/// lists of classes too, with num_classes for vocab_size, the logit of a class the log-sum-exp of its columns' at
/// temperature 1, and ranks among the classes that are listed. A teacher with kd_weight 0 is not read (kd_sum = 0);
/// with both weights 0 nothing is computed and both sums are 0. Error("ERR_INVALID_ARGUMENT"): a label or top-k index
/// out of range, one that is repeated or follows −1, a class out of range, temperature ≤ 0, more than one source of
/// teacher logits, or a teacher together with `allowed`.
LossHeadResult loss_head(Context& context, const float* hidden, const float* table, const float* bias,
                         const int32_t* labels, const TeacherLogits& teacher, const LossHeadOptions& options,
                         double row_scale, const uint8_t* allowed, float* d_hidden, float* d_table, float* d_bias,
                         int64_t num_rows, int64_t hidden_size, int64_t vocab_size);

}  // namespace limbeck
