#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/project.h"
#include "train/trainer.h"

namespace limbeck {

/// How much a model's parameters and channels matter for a corpus: the diagonal of the empirical Fisher information,
/// and mean absolute activations.
class Importance {
 public:
  /// Throws Error("ERR_INVALID_ARGUMENT") for a model with an adapter.
  explicit Importance(std::shared_ptr<Transformer> model);

  /// Each sequence is one example: its mean cross-entropy's gradient is squared and added. A sequence without a label
  /// counts for the activations alone. Parameters stay; the model's gradients are overwritten. Resets `arena`.
  /// labels [N], -100 = ignored. Throws Error("ERR_NOT_FINITE") for a gradient that is not finite.
  void add(Context& context, Arena& arena, const Batch& batch, const int32_t* labels);

  const Transformer& model() const { return trainer_.model(); }
  int64_t num_examples() const { return num_examples_; }
  int64_t num_tokens() const { return num_tokens_; }
  /// (∂loss/∂θ)², mean over examples, for the parameter at this place of Parameters.   out [parameter.count] =
  void squared_gradients(const Parameter& parameter, float* out) const;
  /// The same for every parameter, summed by axis.
  AxisSums fisher_by_axis() const;
  /// The same times the square of each parameter: twice what the loss is expected to rise by without it (LeCun et al.
  /// 1990, Optimal Brain Damage, eq. 5, with the Fisher information for the Hessian).
  AxisSums saliency_by_axis() const;
  /// |activation|, mean over tokens: residual over all hidden states, intermediate after the activation function, heads
  /// over the columns that they attend with. `layers` counts how far each block moves the residual stream, mean over
  /// channels.
  AxisSums activation_by_axis() const;

 private:
  AxisSums mean_by_axis(const float* sums_over_examples) const;
  void add_activations(const Activations& activations);

  Trainer trainer_;
  AlignedFloats squares_;  // [flat_count] sums over examples
  AxisSums activations_;   // sums over tokens
  int64_t num_examples_ = 0, num_tokens_ = 0;
};

}  // namespace limbeck
