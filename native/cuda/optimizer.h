#pragma once

#include <vector>

#include "cuda/context.h"

namespace limbeck::cuda {

/// One tensor of an update. All are in device memory.
struct OptimizerTensor {
  float *values, *gradients, *first, *second;  // [count] fp32; first and second null where the optimiser keeps none
  bf16* compute;                               // [count] or null: the rounded copy that products read, =
  int64_t count;
  float weight_decay;  // 0 for tensors of rank < 2
  /// [count / row_size] or null; 0 = the gradient of this row is zeros, and is not read. row_size is a multiple of 4,
  /// and count < 2³².
  const uint8_t* touched_rows = nullptr;
  int64_t row_size = 0;
};

/// What changes from step to step, in device memory so that a captured graph can be run again.
struct StepScalars {
  float learning_rate;
  float max_grad_norm;      // 0 = no clipping
  float first_correction;   // 1 − beta1^step
  float second_correction;  // 1 − beta2^step
  uint64_t dropout_seed;
};

/// squares [1] = Σ over all tensors of gradient², in double and in an order that the shapes alone decide.
/// `tensors` and `chunks` are made once by plan_update().
struct UpdatePlan {
  const OptimizerTensor* tensors;  // device copy [num_tensors]
  const int64_t* chunks;           // device [num_chunks, 2]: tensor, first element (a multiple of kChunkFloats)
  int64_t num_chunks;
  static constexpr int64_t kChunkFloats = 16384;
};
UpdatePlan plan_update(Context& context, const std::vector<OptimizerTensor>& tensors);

void squared_norm(Context& context, const UpdatePlan& plan, double* squares);

struct AdamWConstants {
  float beta1, beta2, epsilon;
};
/// AdamW as ops/optimizer.h has it, one launch for all tensors; gradients are scaled by max_grad_norm/norm where the
/// norm √squares is larger. Nothing is changed when `squares` or `loss` is not finite.   loss [1], squares [1]
void adamw(Context& context, const UpdatePlan& plan, const AdamWConstants& constants, const StepScalars* scalars,
           const double* squares, const double* loss);
/// buffer ← momentum·buffer + g; θ ← θ·(1 − lr·wd) − lr·buffer; buffer is `first`.
void sgd(Context& context, const UpdatePlan& plan, float momentum, const StepScalars* scalars, const double* squares,
         const double* loss);

/// θ ← θ + alpha·weight·(target − θ); weights [count] or null = 1; compute [count] or null: the rounded copy, =
void interpolate(Context& context, float* parameters, const float* target, const float* weights, bf16* compute,
                 int64_t count, float alpha);

/// Squared error after a projection: difference = scale·(student − teacher) (in place in student) and sum [1] += its
/// Σ (student − teacher)².
template <typename T>
void squared_error(Context& context, T* student, const T* teacher, int64_t count, float scale, double* sum);

}  // namespace limbeck::cuda
