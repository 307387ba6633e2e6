#pragma once

#include <cstdint>

namespace limbeck {

/// One row of the loss head. The formulas are those of ops/loss_head.h.
struct LossRow {
  float* logits;         // [vocab_size] of the student; the gradient of the row's value replaces it when wanted
  const float* mask;     // null, or [vocab_size]: 0, or −∞ for a column that takes part only where it is the label
  const float* teacher;  // null, or dense logits [vocab_size]
  const int32_t* top_k_indices;  // null, or distinct columns [top_k]
  const float* top_k_values;     // [top_k] logits
  float teacher_log_sum_exp;     // with top_k
  int64_t top_k;
  const int32_t* classes;  // with top_k: null, or [vocab_size] in [0, num_classes), and top_k_indices name classes
  int64_t num_classes;     // vocab_size without classes
  int64_t vocab_size;
  int32_t label;
  float ce_weight, kd_weight, temperature, fusion, gate;
  float grad_scale;  // multiplies the gradient
  bool wants_gradient;
};

struct LossRowValue {
  double cross_entropy;  // −log softmax(z)[label]
  double distillation;   // gate·τ²·KL; 0 without a teacher
};

/// Scratch floats of one row.
inline int64_t loss_row_scratch_floats(int64_t vocab_size, int64_t top_k) {
  return 2 * ((vocab_size + 15) / 16 * 16) + 5 * ((top_k + 16) / 16 * 16);
}

}  // namespace limbeck
