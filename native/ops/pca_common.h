#pragma once

#include <cstdint>

// What pca() of the processor and of the GPU have in common, besides subspace.h.

namespace limbeck {

/// Throws Error("ERR_INVALID_ARGUMENT") unless 1 ≤ num_components ≤ min(num_rows, num_columns).
void check_num_components(int64_t num_rows, int64_t num_columns, int64_t num_components);

/// Throws Error("ERR_INVALID_ARGUMENT") where a mean [num_columns] is NaN or infinite.
void check_means(const float* mean, int64_t num_columns);

/// explained_variance [num_components] = eigenvalues / (num_rows − 1), zero where an eigenvalue is rounding noise.
///   eigenvalues [num_components] of the centred XᵀX, largest first
void explained_variances(const double* eigenvalues, int64_t num_rows, int64_t num_components,
                         float* explained_variance);

}  // namespace limbeck
