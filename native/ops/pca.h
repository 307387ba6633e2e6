#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Principal components by randomised SVD with power iterations (Halko, Martinsson & Tropp 2011, arXiv:0909.4061,
/// alg. 4.4 and 5.1) of the centred x. Signs are fixed: the largest absolute entry of each component is positive.
///   x [num_rows, num_columns], mean [num_columns] =, components [num_components, num_columns] = orthonormal rows by
///   falling variance, explained_variance [num_components] = (divided by num_rows − 1)
/// Requires 1 ≤ num_components ≤ min(num_rows, num_columns); rows beyond the rank are filled orthonormally, variance 0.
void pca(Context& context, const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed,
         float* mean, float* components, float* explained_variance);

/// y = (x − mean)·componentsᵀ.   y [num_rows, num_components]
void pca_transform(Context& context, const float* x, const float* mean, const float* components, float* y,
                   int64_t num_rows, int64_t num_columns, int64_t num_components);

/// The axes of a residual stream that carry most of what its norms pass on: principal axes about zero, by the same
/// algorithm, of the rows of x after an RMS norm of gain 1, or a layer norm (`subtracts_mean`). What the mean of the
/// rows lies along is among them, for norms do not subtract it. Ashkboos et al. 2024, arXiv:2401.15024, §3.3.
///   x [num_rows, num_columns], axes [num_axes, num_columns] = orthonormal rows, largest first
/// In fp32 whatever the context's precision. Requires 1 ≤ num_axes ≤ min(num_rows, num_columns). Throws
/// Error("ERR_INVALID_ARGUMENT") where x is not finite.
void residual_axes(Context& context, const float* x, bool subtracts_mean, int64_t num_rows, int64_t num_columns,
                   int64_t num_axes, uint64_t seed, float* axes);

}  // namespace limbeck
