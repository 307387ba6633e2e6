#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Rows of a sparse matrix; the columns of a row are distinct, in any order.
struct SparseMatrix {
  const int32_t* row_offsets;  // [num_rows + 1] from 0
  const int32_t* columns;      // [entries]
  const float* values;         // [entries]
  int64_t num_rows, num_columns;
};

/// Truncated singular value decomposition X ≈ U·Σ·V of a sparse matrix, by randomised subspace iteration (Halko,
/// Martinsson & Tropp 2011, arXiv:0909.4061, alg. 4.4 and 5.1) in double. The matrix is not centred, which would fill
/// it. The same bits for any thread count.
///   singular_values [num_components] = falling; components [num_components, num_columns] = orthonormal rows V, the
///   largest absolute entry of each positive; projected [num_rows, num_components] = X·Vᵀ = U·Σ
/// Error("ERR_INVALID_ARGUMENT"): components outside 1 … min(rows, columns), offsets that do not ascend, a column out
/// of range, NaN or infinity.
void sparse_svd(Context& context, const SparseMatrix& matrix, int64_t num_components, uint64_t seed,
                float* singular_values, float* components, float* projected);

}  // namespace limbeck
