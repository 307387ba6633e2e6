#include "ops/pca.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "ops/linear.h"

namespace limbeck {
namespace {

// Halko et al. §4.2: five to ten extra directions are enough; §4.5: a few power iterations for a slow spectrum.
constexpr int64_t kOversampling = 10;
constexpr int kPowerIterations = 7;
// Rows centred at a time: the copy (1024 × columns) stays in cache and x itself is never duplicated.
constexpr int64_t kChunkRows = 1024;
// A singular value below this share of the largest is rounding noise of float32 products.
constexpr double kRankTolerance = 2e-6;
// A direction that lost all but this share of its length to earlier ones carries no information of its own.
constexpr double kDependentTolerance = 1e-13;

double dot(const double* a, const double* b, int64_t count) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// row[0 … count) -= (row·direction)·direction
void remove_component(const double* direction, double* row, int64_t count) {
  const double projection = dot(row, direction, count);
  for (int64_t i = 0; i < count; ++i) row[i] -= projection * direction[i];
}

void fill_normal(double* row, int64_t count, uint64_t seed, uint64_t stream) {
  const Philox random{seed, stream};
  for (int64_t i = 0; i < count; ++i) row[i] = random.normal(static_cast<uint64_t>(i));
}

/// Orthonormal rows by modified Gram–Schmidt, twice because the rows may be nearly dependent; a row without a direction
/// of its own is replaced by a random one.
void orthonormalise_rows(ThreadPool& pool, double* q, int64_t num_rows, int64_t num_columns, double* lengths,
                         uint64_t seed) {
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t i = 0; i < num_rows; ++i) {
      lengths[i] = std::sqrt(dot(q + i * num_columns, q + i * num_columns, num_columns));
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      double* row = q + i * num_columns;
      double length = std::sqrt(dot(row, row, num_columns));
      for (uint64_t attempt = 0; !(length > kDependentTolerance * lengths[i]); ++attempt) {
        fill_normal(row, num_columns, seed, (static_cast<uint64_t>(i) << 32) + attempt + 1);
        lengths[i] = std::sqrt(dot(row, row, num_columns));
        for (int repeat = 0; repeat < 2; ++repeat) {
          for (int64_t j = 0; j < i; ++j) remove_component(q + j * num_columns, row, num_columns);
        }
        length = std::sqrt(dot(row, row, num_columns));
      }
      for (int64_t c = 0; c < num_columns; ++c) row[c] /= length;
      pool.parallel_for(num_rows - i - 1, [&](int64_t offset, int) {
        remove_component(row, q + (i + 1 + offset) * num_columns, num_columns);
      });
    }
  }
}

/// Eigenvalues and eigenvectors (rows of `vectors`) of a symmetric matrix, both unordered, by cyclic Jacobi rotations
/// (Golub & Van Loan, Matrix Computations, §8.5). Accurate for graded matrices, which the Gram matrix of principal
/// directions is. `matrix` ends diagonal.
void jacobi_eigen(double* matrix, double* vectors, int64_t size) {
  std::fill(vectors, vectors + size * size, 0.0);
  for (int64_t i = 0; i < size; ++i) vectors[i * size + i] = 1;
  constexpr int kMaxSweeps = 60;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool rotated = false;
    for (int64_t p = 0; p < size; ++p) {
      for (int64_t q = p + 1; q < size; ++q) {
        const double app = matrix[p * size + p], aqq = matrix[q * size + q], apq = matrix[p * size + q];
        if (apq == 0 || std::fabs(apq) <= 1e-15 * std::sqrt(std::fabs(app) * std::fabs(aqq))) continue;
        rotated = true;
        const double theta = (aqq - app) / (2 * apq);
        const double tangent = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double cosine = 1 / std::sqrt(tangent * tangent + 1);
        const double sine = tangent * cosine;
        // Only rows are walked: the matrix stays symmetric, so its columns p and q are copies of them.
        double* row_p = matrix + p * size;
        double* row_q = matrix + q * size;
        for (int64_t i = 0; i < size; ++i) {
          const double x = row_p[i], y = row_q[i];
          row_p[i] = cosine * x - sine * y;
          row_q[i] = sine * x + cosine * y;
        }
        row_p[p] = app - tangent * apq;
        row_q[q] = aqq + tangent * apq;
        row_p[q] = row_q[p] = 0;
        for (int64_t i = 0; i < size; ++i) {
          matrix[i * size + p] = row_p[i];
          matrix[i * size + q] = row_q[i];
        }
        double* vector_p = vectors + p * size;
        double* vector_q = vectors + q * size;
        for (int64_t i = 0; i < size; ++i) {
          const double x = vector_p[i], y = vector_q[i];
          vector_p[i] = cosine * x - sine * y;
          vector_q[i] = sine * x + cosine * y;
        }
      }
    }
    if (!rotated) return;
  }
}

void column_means(ThreadPool& pool, const float* x, int64_t num_rows, int64_t num_columns, double* sums, float* mean) {
  constexpr int64_t kBlockColumns = 64;
  pool.parallel_for((num_columns + kBlockColumns - 1) / kBlockColumns, [&](int64_t block, int) {
    const int64_t begin = block * kBlockColumns, end = std::min(begin + kBlockColumns, num_columns);
    std::fill(sums + begin, sums + end, 0.0);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t c = begin; c < end; ++c) sums[c] += x[r * num_columns + c];
    }
    for (int64_t c = begin; c < end; ++c) mean[c] = static_cast<float>(sums[c] / static_cast<double>(num_rows));
  });
}

void centre_rows(ThreadPool& pool, const float* x, const float* mean, float* centred, int64_t num_rows,
                 int64_t num_columns) {
  constexpr int64_t kBlockRows = 64;
  pool.parallel_for((num_rows + kBlockRows - 1) / kBlockRows, [&](int64_t block, int) {
    const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, num_rows);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < num_columns; ++c) centred[r * num_columns + c] = x[r * num_columns + c] - mean[c];
    }
  });
}

/// Calls visit(projected [rows, size], centred [rows, num_columns], rows) for each chunk of rows, where projected is
/// the centred chunk times basisᵀ.
template <typename Visit>
void for_each_projected_chunk(Context& context, const float* x, const float* mean, const float* basis, int64_t num_rows,
                              int64_t num_columns, int64_t size, Visit&& visit) {
  Arena::Scope scope(context.scratch);
  const int64_t chunk_rows = std::min(kChunkRows, num_rows);
  float* centred = context.scratch.allocate<float>(chunk_rows * num_columns);
  float* projected = context.scratch.allocate<float>(chunk_rows * size);
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    centre_rows(context.pool, x + begin * num_columns, mean, centred, rows, num_columns);
    gemm(context, rows, size, num_columns, {centred, num_columns, 1}, {basis, 1, num_columns}, nullptr, projected, size,
         false);
    visit(projected, centred, rows);
  }
}

void check_finite(const float* mean, int64_t num_columns) {
  for (int64_t c = 0; c < num_columns; ++c) {
    if (!std::isfinite(mean[c])) {
      throw Error("ERR_INVALID_ARGUMENT", "pca expects finite numbers; column " + std::to_string(c) +
                                              " holds NaN or infinity. Drop or repair those rows first");
    }
  }
}

}  // namespace

void pca(Context& context, const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed,
         float* mean, float* components, float* explained_variance) {
  const int64_t rank = std::min(num_rows, num_columns);
  if (num_components < 1 || num_components > rank) {
    throw Error("ERR_INVALID_ARGUMENT", "pca expects 1 to min(rows, columns) = " + std::to_string(rank) +
                                            " components, got " + std::to_string(num_components));
  }
  Arena::Scope scope(context.scratch);
  Arena& scratch = context.scratch;
  const int64_t size = std::min(num_components + kOversampling, num_columns);

  column_means(context.pool, x, num_rows, num_columns, scratch.allocate<double>(num_columns), mean);
  check_finite(mean, num_columns);

  // Subspace iteration on the row space: basis ← orthonormal(basis·XᵀX), never forming XᵀX.
  double* basis = scratch.allocate<double>(size * num_columns);
  float* basis_f32 = scratch.allocate<float>(size * num_columns);
  float* product = scratch.allocate<float>(size * num_columns);
  double* lengths = scratch.allocate<double>(size);
  for (int64_t i = 0; i < size; ++i)
    fill_normal(basis + i * num_columns, num_columns, seed, static_cast<uint64_t>(i) << 32);
  orthonormalise_rows(context.pool, basis, size, num_columns, lengths, seed);
  std::copy(basis, basis + size * num_columns, basis_f32);
  for (int iteration = 0; iteration < kPowerIterations; ++iteration) {
    std::fill(product, product + size * num_columns, 0.0f);
    for_each_projected_chunk(context, x, mean, basis_f32, num_rows, num_columns, size,
                             [&](const float* projected, const float* centred, int64_t rows) {
                               gemm(context, size, num_columns, rows, {projected, 1, size}, {centred, num_columns, 1},
                                    nullptr, product, num_columns, true);
                             });
    std::copy(product, product + size * num_columns, basis);
    orthonormalise_rows(context.pool, basis, size, num_columns, lengths, seed);
    std::copy(basis, basis + size * num_columns, basis_f32);
  }

  // Rayleigh–Ritz: the principal axes inside the subspace. Chunks are summed in double.
  double* gram = scratch.allocate<double>(size * size);
  double* rotation = scratch.allocate<double>(size * size);
  float* chunk_gram = scratch.allocate<float>(size * size);
  std::fill(gram, gram + size * size, 0.0);
  for_each_projected_chunk(
      context, x, mean, basis_f32, num_rows, num_columns, size,
      [&](const float* projected, const float*, int64_t rows) {
        gemm(context, size, size, rows, {projected, 1, size}, {projected, size, 1}, nullptr, chunk_gram, size, false);
        for (int64_t i = 0; i < size * size; ++i) gram[i] += chunk_gram[i];
      });
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const double both = 0.5 * (gram[i * size + j] + gram[j * size + i]);
      gram[i * size + j] = gram[j * size + i] = both;
    }
  }
  jacobi_eigen(gram, rotation, size);

  int64_t* order = scratch.allocate<int64_t>(size);
  std::iota(order, order + size, int64_t{0});
  std::sort(order, order + size, [&](int64_t a, int64_t b) {
    const double left = gram[a * size + a], right = gram[b * size + b];
    return left > right || (left == right && a < b);
  });
  const double largest = gram[order[0] * size + order[0]];
  double* axis = scratch.allocate<double>(num_columns);
  for (int64_t k = 0; k < num_components; ++k) {
    std::fill(axis, axis + num_columns, 0.0);
    for (int64_t i = 0; i < size; ++i) {
      const double weight = rotation[order[k] * size + i];
      for (int64_t c = 0; c < num_columns; ++c) axis[c] += weight * basis[i * num_columns + c];
    }
    int64_t peak = 0;
    for (int64_t c = 1; c < num_columns; ++c) {
      if (std::fabs(axis[c]) > std::fabs(axis[peak])) peak = c;
    }
    const double sign = axis[peak] < 0 ? -1 : 1;
    for (int64_t c = 0; c < num_columns; ++c) components[k * num_columns + c] = static_cast<float>(sign * axis[c]);
    const double eigenvalue = gram[order[k] * size + order[k]];
    const bool is_noise = eigenvalue <= kRankTolerance * kRankTolerance * largest || num_rows < 2;
    explained_variance[k] = is_noise ? 0.0f : static_cast<float>(eigenvalue / static_cast<double>(num_rows - 1));
  }
}

void pca_transform(Context& context, const float* x, const float* mean, const float* components, float* y,
                   int64_t num_rows, int64_t num_columns, int64_t num_components) {
  for_each_projected_chunk(context, x, mean, components, num_rows, num_columns, num_components,
                           [&](const float* projected, const float*, int64_t rows) {
                             std::copy(projected, projected + rows * num_components, y);
                             y += rows * num_components;
                           });
}

}  // namespace limbeck
