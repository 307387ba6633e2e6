#pragma once

#include <cstdint>
#include <vector>

#include "ops/context.h"

namespace limbeck {

struct ClassifierInputs {
  const float* x;  // [num_rows, num_columns]
  int64_t num_rows, num_columns;
  const int32_t* labels;  // [num_rows] in [0, num_classes); every class has a row
  int64_t num_classes;    // ≥ 2
  float learning_rate;
  float l2;            // λ of λ/2·‖weight‖², added to the mean loss; on standardised columns
  int64_t batch_size;  // rows of a step
  int64_t max_epochs;
  int64_t patience;  // epochs in a row without a better held-out loss after which it ends
  double held_out;   // share of each class's rows in [0, 1) that is not trained on; one row at least stays
  uint64_t seed;
};

struct ClassifierResult {
  std::vector<float> weight;            // [num_classes, num_columns], for x as it came
  std::vector<float> bias;              // [num_classes]
  std::vector<double> train_losses;     // mean cross-entropy of each epoch's batches, in nats
  std::vector<double> held_out_losses;  // mean cross-entropy after each epoch; empty without held-out rows
  int64_t best_epoch;                   // counted from 0: the one whose parameters these are
  std::vector<int32_t> held_out_rows;   // ascending
};

/// Softmax regression on standardised columns (mean 0, variance 1 over the rows trained on), by AdamW (β 0.9, 0.999)
/// from zeros over batches shuffled by `seed`. With held-out rows the parameters are those of the epoch of least
/// held-out loss, else those of the last. Standardisation is folded into weight and bias; a column that is constant up
/// to rounding gets weight 0. Products are fp32 whatever the context's precision. Same bits for any thread count.
/// Resets `arena`. Throws Error("ERR_INVALID_ARGUMENT") for what the comments above exclude and for NaN or infinity in
/// x, Error("ERR_NOT_FINITE") when the loss becomes so.
ClassifierResult fit_classifier(Context& context, Arena& arena, const ClassifierInputs& inputs);

/// probabilities = softmax(x·weightᵀ + bias) by row, in fp32 whatever the context's precision.
///   x [num_rows, num_columns], weight [num_classes, num_columns], bias [num_classes],
///   probabilities [num_rows, num_classes] =
void class_probabilities(Context& context, const float* x, const float* weight, const float* bias, float* probabilities,
                         int64_t num_rows, int64_t num_columns, int64_t num_classes);

}  // namespace limbeck
