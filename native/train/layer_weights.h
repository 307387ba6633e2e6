#pragma once

#include <cstdint>
#include <vector>

#include "ops/context.h"

namespace limbeck {

struct LayerWeightsInputs {
  std::vector<const float*> layers;  // each [num_rows, num_columns]
  int64_t num_rows, num_columns;
  const int32_t* queries;  // [num_pairs] rows of items
  const int32_t* targets;  // [num_pairs] rows of the items that followed
  int64_t num_pairs;
  int64_t num_steps;
  uint64_t seed;
};

struct LayerWeightsResult {
  std::vector<float> weights;    // [layers], ≥ 0, sum 1
  double first_loss, last_loss;  // mean in-batch contrast over the first and the last tenth of the steps
};

/// Scalar mix of layers (Peters et al. 2018, arXiv:1802.05365, eq. 1) learned without labels of its own: softmax
/// weights s, fused vector f = Σ s_l·(x_l − mean of layer l), and the in-batch softmax loss (InfoNCE, van den Oord et
/// al. 2018, arXiv:1807.03748, eq. 4) of cos(f_query, f_target)/0.1 over batches of 128 pairs, by Adam (rate 0.05).
/// A pair whose target equals another pair's target in the batch is not its negative. Same bits for any thread count.
/// With fewer than 128 pairs each batch holds all of them. Resets `arena`. Throws Error("ERR_INVALID_ARGUMENT") for
/// rows out of range, NaN or infinity in a layer, no layers, no steps, or fewer than 2 pairs.
LayerWeightsResult learn_layer_weights(Context& context, Arena& arena, const LayerWeightsInputs& inputs);

}  // namespace limbeck
