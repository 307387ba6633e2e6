#pragma once

#include "cuda/context.h"

// Kernels of pca().

namespace limbeck::cuda {

/// mean [num_columns] = of x [num_rows, num_columns], num_rows ≥ 1, summed in fp64.
void column_means(Context& context, const float* x, float* mean, int64_t num_rows, int64_t num_columns);

/// x [num_rows, num_columns] -= mean [num_columns] in every row.
void centre_rows(Context& context, const float* mean, float* x, int64_t num_rows, int64_t num_columns);

/// to [count] = from, rounded where the type is shorter. (float, double) and (double, float).
template <typename From, typename To>
void convert_numbers(Context& context, const From* from, To* to, int64_t count);

/// gram [num_rows, num_rows] = x·xᵀ of x [num_rows, num_columns] in fp64. The upper triangle is left undefined.
void gram_of_rows(Context& context, const double* x, double* gram, int64_t num_rows, int64_t num_columns);

/// gram [num_columns, num_columns] = xᵀ·x, or += that where `accumulate`, of x [num_rows, num_columns], in fp64: every
/// product is exact. The upper triangle is left undefined.
void gram_of_columns(Context& context, const float* x, double* gram, int64_t num_rows, int64_t num_columns,
                     bool accumulate);

/// y [m, num_columns] = transform [m, num_rows]·x [num_rows, num_columns] in fp64.
void transform_rows(Context& context, const double* transform, const double* x, double* y, int64_t m, int64_t num_rows,
                    int64_t num_columns);

}  // namespace limbeck::cuda
