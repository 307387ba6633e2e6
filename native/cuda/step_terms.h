#pragma once

#include "cuda/context.h"

namespace limbeck::cuda {

/// The five terms of a step's loss, in the order of LossWeights.
constexpr int kNumTerms = 5;

struct StepTerms {
  double scale[kNumTerms];  // of each sum: its weight over what it is averaged over
};

/// loss [1] = Σ scale·sums.   sums [kNumTerms]
void sum_terms(Context& context, const double* sums, const StepTerms& terms, double* loss);

}  // namespace limbeck::cuda
