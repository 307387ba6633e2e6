#pragma once

#include "model/transformer.h"

namespace limbeck {

/// Adds bias [V] to the logits of a model with tied embeddings, for every input, without a parameter more. The last
/// layer norm gives h = γ∘x̂ + β with Σ x̂ = 0, so that h·(1/γ) is the constant C = Σ β/γ, and a table row that moves by
/// b/C along 1/γ scores b more. C is first made 10·|1/γ|, by a shift of β along 1/γ that all rows (v and the columns of
/// A alike) are turned against, so that the moves are short and no logit changes by it. What the model reads changes by
/// the same moves, which the layer norm over embeddings, or that of each block, nearly removes: the gains are nearly
/// equal and their mean is subtracted. Items whose vectors are A·u alone keep their logits.
/// Throws Error("ERR_INVALID_ARGUMENT") for a model without tied embeddings, with a head of its own or RMS norms, for a
/// gain of zero, or a bias that is not finite.
void add_item_bias(Transformer& model, const float* bias);

}  // namespace limbeck
