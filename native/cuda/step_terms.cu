#include "cuda/launch.h"
#include "cuda/step_terms.h"

namespace limbeck::cuda {

namespace {

__global__ void sum_kernel(const double* sums, StepTerms terms, double* loss) {
  double total = 0;
  for (int i = 0; i < kNumTerms; ++i) {
    // A term without weight is not in the loss, whatever it is.
    if (terms.scale[i] != 0) total += terms.scale[i] * sums[i];
  }
  *loss = total;
}

}  // namespace

void sum_terms(Context& context, const double* sums, const StepTerms& terms, double* loss) {
  launch(context, sum_kernel, dim3(1), dim3(1), 0, sums, terms, loss);
}

}  // namespace limbeck::cuda
