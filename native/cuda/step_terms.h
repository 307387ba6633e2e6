#pragma once

#include "cuda/context.h"

namespace limbeck::cuda {

/// The five terms of a step's loss, in the order of LossWeights.
constexpr int kNumTerms = 5;

struct StepTerms {
  double scale[kNumTerms];  // of each sum: its weight over what it is averaged over
};

/// loss [1] = Σ scale·sums.   sums [kNumTerms]
/// For a step that updates, `failed` [1], not null: becomes 1 when loss or `squares` [1] is not finite, and stays so.
/// While it is 1 from a step before, squares = infinity, so that this one changes nothing either.
void sum_terms(Context& context, const double* sums, const StepTerms& terms, double* loss, double* squares,
               double* failed);

}  // namespace limbeck::cuda
