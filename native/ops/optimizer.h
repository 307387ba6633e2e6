#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// √Σ x² in double, summed over fixed blocks so that the number of threads does not matter.
double global_norm(Context& context, const float* x, int64_t count);

struct AdamWOptions {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step;      // 1 for the first update
  float grad_scale;  // gradient clipping: gradients are multiplied by it first
};

/// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, alg. 2), in one pass:
/// θ ← θ·(1 − lr·wd); m, v updated; θ ← θ − lr·m̂/(√v̂ + ε).   parameters, first, second [count] in place
void adamw(Context& context, float* parameters, const float* gradients, float* first, float* second, int64_t count,
           const AdamWOptions& options);

struct SgdOptions {
  float learning_rate, momentum, weight_decay, grad_scale;
};

/// buffer ← momentum·buffer + g; θ ← θ·(1 − lr·wd) − lr·buffer.
void sgd(Context& context, float* parameters, const float* gradients, float* buffer, int64_t count,
         const SgdOptions& options);

/// Parameter interpolation θ ← θ + alpha·(target − θ).
void interpolate(Context& context, float* parameters, const float* target, int64_t count, float alpha);
/// The same with a weight for each parameter: θ ← θ + alpha·weight·(target − θ).   weights [count]
void interpolate_weighted(Context& context, float* parameters, const float* target, const float* weights, int64_t count,
                          float alpha);
/// sums += x².   sums, x [count]
void add_squares(Context& context, float* sums, const float* x, int64_t count);

/// Squared error after a projection: difference = student − teacher (in place in student) and its Σ of squares.
double squared_error(Context& context, float* student, const float* teacher, int64_t count);

}  // namespace limbeck
