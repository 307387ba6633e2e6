#include "ops/sparse_svd.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "ops/subspace.h"

namespace limbeck {
namespace {

void check_matrix(const SparseMatrix& matrix) {
  if (matrix.row_offsets[0] != 0) throw Error("ERR_INVALID_ARGUMENT", "rowOffsets must start at 0");
  for (int64_t r = 0; r < matrix.num_rows; ++r) {
    if (matrix.row_offsets[r + 1] < matrix.row_offsets[r]) {
      throw Error("ERR_INVALID_ARGUMENT", "rowOffsets must not fall, but do after row " + std::to_string(r));
    }
  }
  for (int64_t i = 0; i < matrix.row_offsets[matrix.num_rows]; ++i) {
    const int32_t column = matrix.columns[i];
    if (column < 0 || column >= matrix.num_columns) {
      throw Error("ERR_INVALID_ARGUMENT", "columns[" + std::to_string(i) + "] must be in [0, " +
                                              std::to_string(matrix.num_columns) + "), got " + std::to_string(column));
    }
    if (!std::isfinite(matrix.values[i])) {
      throw Error("ERR_INVALID_ARGUMENT", "values[" + std::to_string(i) + "] must be finite");
    }
  }
}

/// projected [size, num_rows] = basis [size, num_columns]·Xᵀ
void project(ThreadPool& pool, const SparseMatrix& matrix, const double* basis, int64_t size, double* projected) {
  pool.parallel_for(size, [&](int64_t i, int) {
    const double* direction = basis + i * matrix.num_columns;
    for (int64_t r = 0; r < matrix.num_rows; ++r) {
      double sum = 0;
      for (int64_t e = matrix.row_offsets[r]; e < matrix.row_offsets[r + 1]; ++e) {
        sum += static_cast<double>(matrix.values[e]) * direction[matrix.columns[e]];
      }
      projected[i * matrix.num_rows + r] = sum;
    }
  });
}

/// basis [size, num_columns] = projected [size, num_rows]·X
void project_back(ThreadPool& pool, const SparseMatrix& matrix, const double* projected, int64_t size, double* basis) {
  pool.parallel_for(size, [&](int64_t i, int) {
    double* direction = basis + i * matrix.num_columns;
    std::fill(direction, direction + matrix.num_columns, 0.0);
    for (int64_t r = 0; r < matrix.num_rows; ++r) {
      const double weight = projected[i * matrix.num_rows + r];
      for (int64_t e = matrix.row_offsets[r]; e < matrix.row_offsets[r + 1]; ++e) {
        direction[matrix.columns[e]] += weight * static_cast<double>(matrix.values[e]);
      }
    }
  });
}

}  // namespace

void sparse_svd(Context& context, const SparseMatrix& matrix, int64_t num_components, uint64_t seed,
                float* singular_values, float* components, float* projected) {
  const int64_t num_rows = matrix.num_rows, num_columns = matrix.num_columns;
  const int64_t rank = std::min(num_rows, num_columns);
  if (num_components < 1 || num_components > rank) {
    throw Error("ERR_INVALID_ARGUMENT", "sparseSvd expects 1 to min(rows, columns) = " + std::to_string(rank) +
                                            " components, got " + std::to_string(num_components));
  }
  check_matrix(matrix);
  Arena& scratch = context.scratch;
  Arena::Scope scope(scratch);
  const int64_t size = std::min(num_components + kOversampling, num_columns);
  double* basis = scratch.allocate<double>(size * num_columns);
  double* seen = scratch.allocate<double>(size * num_rows);  // basis·Xᵀ
  double* lengths = scratch.allocate<double>(size);
  random_directions(context.pool, basis, size, num_columns, lengths, seed);
  for (int iteration = 0; iteration < kPowerIterations; ++iteration) {
    project(context.pool, matrix, basis, size, seen);
    project_back(context.pool, matrix, seen, size, basis);
    orthonormalise_rows(context.pool, basis, size, num_columns, lengths, seed);
  }

  project(context.pool, matrix, basis, size, seen);
  double* gram = scratch.allocate<double>(size * size);
  context.pool.parallel_for(size, [&](int64_t i, int) {
    for (int64_t j = 0; j < size; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < num_rows; ++r) sum += seen[i * num_rows + r] * seen[j * num_rows + r];
      gram[i * size + j] = sum;
    }
  });
  double* eigenvalues = scratch.allocate<double>(num_components);
  principal_axes(scratch, gram, basis, size, num_columns, num_components, eigenvalues, components);
  for (int64_t k = 0; k < num_components; ++k) {
    singular_values[k] = static_cast<float>(std::sqrt(std::max(0.0, eigenvalues[k])));
  }
  std::copy(components, components + num_components * num_columns, basis);
  project(context.pool, matrix, basis, num_components, seen);
  for (int64_t k = 0; k < num_components; ++k) {
    for (int64_t r = 0; r < num_rows; ++r) {
      projected[r * num_components + k] = static_cast<float>(seen[k * num_rows + r]);
    }
  }
}

}  // namespace limbeck
