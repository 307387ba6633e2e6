#include "cuda/launch.h"
#include "cuda/step_terms.h"

namespace limbeck::cuda {

namespace {

__global__ void sum_kernel(const double* sums, StepTerms terms, double* loss, double* squares, double* failed) {
  double total = 0;
  for (int i = 0; i < kNumTerms; ++i) {
    // A term without weight is not in the loss, whatever it is.
    if (terms.scale[i] != 0) total += terms.scale[i] * sums[i];
  }
  *loss = total;
  if (failed == nullptr) return;
  const double sum_of_squares = *squares;
  const bool is_finite = total - total == 0 && sum_of_squares - sum_of_squares == 0;
  if (*failed != 0) {
    *squares = INFINITY;
  } else if (!is_finite) {
    *failed = 1;
  }
}

}  // namespace

void sum_terms(Context& context, const double* sums, const StepTerms& terms, double* loss, double* squares,
               double* failed) {
  launch(context, sum_kernel, dim3(1), dim3(1), 0, sums, terms, loss, squares, failed);
}

}  // namespace limbeck::cuda
