#include "ops/subspace.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace limbeck {
namespace {

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

/// Eigenvalues and eigenvectors (rows of `vectors`) of a symmetric matrix, both unordered, by cyclic Jacobi rotations
/// (Golub & Van Loan, Matrix Computations, §8.5). Accurate for graded matrices, which the Gram matrix of principal
/// directions is. `matrix`, whose rows are `stride` apart, ends diagonal.
void jacobi_eigen(double* matrix, int64_t stride, double* vectors, int64_t size) {
  std::fill(vectors, vectors + size * size, 0.0);
  for (int64_t i = 0; i < size; ++i) vectors[i * size + i] = 1;
  constexpr int kMaxSweeps = 60;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool rotated = false;
    for (int64_t p = 0; p < size; ++p) {
      for (int64_t q = p + 1; q < size; ++q) {
        const double app = matrix[p * stride + p], aqq = matrix[q * stride + q], apq = matrix[p * stride + q];
        if (apq == 0 || std::fabs(apq) <= 1e-15 * std::sqrt(std::fabs(app) * std::fabs(aqq))) continue;
        rotated = true;
        const double theta = (aqq - app) / (2 * apq);
        const double tangent = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double cosine = 1 / std::sqrt(tangent * tangent + 1);
        const double sine = tangent * cosine;
        // Only rows are walked: the matrix stays symmetric, so its columns p and q are copies of them.
        double* row_p = matrix + p * stride;
        double* row_q = matrix + q * stride;
        for (int64_t i = 0; i < size; ++i) {
          const double x = row_p[i], y = row_q[i];
          row_p[i] = cosine * x - sine * y;
          row_q[i] = sine * x + cosine * y;
        }
        row_p[p] = app - tangent * apq;
        row_q[q] = aqq + tangent * apq;
        row_p[q] = row_q[p] = 0;
        for (int64_t i = 0; i < size; ++i) {
          matrix[i * stride + p] = row_p[i];
          matrix[i * stride + q] = row_q[i];
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

}  // namespace

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
        random_direction(row, num_columns, seed, i, attempt + 1);
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

void random_direction(double* direction, int64_t num_columns, uint64_t seed, int64_t row, uint64_t attempt) {
  const Philox random{seed, (static_cast<uint64_t>(row) << 32) + attempt};
  for (int64_t c = 0; c < num_columns; ++c) direction[c] = random.normal(static_cast<uint64_t>(c));
}

void random_directions(ThreadPool& pool, double* q, int64_t num_rows, int64_t num_columns, double* lengths,
                       uint64_t seed) {
  for (int64_t i = 0; i < num_rows; ++i) {
    random_direction(q + i * num_columns, num_columns, seed, i, 0);
  }
  orthonormalise_rows(pool, q, num_rows, num_columns, lengths, seed);
}

void principal_rotation(Arena& scratch, const double* gram, int64_t size, int64_t num_axes, double* eigenvalues,
                        double* rotation) {
  Arena::Scope scope(scratch);
  // An odd number of cache lines: with a power of two, a column would lie in few sets of the cache.
  const int64_t stride = ((size + 7) / 8 * 8) | 8;
  double* matrix = scratch.allocate<double>(size * stride);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double both = 0.5 * (gram[i * size + j] + gram[j * size + i]);
      if (!std::isfinite(both)) {
        throw Error("ERR_NOT_FINITE", "Principal axes need finite numbers, and these hold NaN or infinity.");
      }
      matrix[i * stride + j] = matrix[j * stride + i] = both;
    }
  }
  double* vectors = scratch.allocate<double>(size * size);
  jacobi_eigen(matrix, stride, vectors, size);
  int64_t* order = scratch.allocate<int64_t>(size);
  std::iota(order, order + size, int64_t{0});
  const auto eigenvalue = [&](int64_t i) { return matrix[i * stride + i]; };
  std::sort(order, order + size, [&](int64_t a, int64_t b) {
    return eigenvalue(a) > eigenvalue(b) || (eigenvalue(a) == eigenvalue(b) && a < b);
  });
  for (int64_t k = 0; k < num_axes; ++k) {
    const double* vector = vectors + order[k] * size;
    std::copy(vector, vector + size, rotation + k * size);
    eigenvalues[k] = eigenvalue(order[k]);
  }
}

void fix_sign(const double* axis, int64_t count, float* to) {
  int64_t peak = 0;
  for (int64_t c = 1; c < count; ++c) {
    if (std::fabs(axis[c]) > std::fabs(axis[peak])) peak = c;
  }
  const double sign = axis[peak] < 0 ? -1 : 1;
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<float>(sign * axis[c]);
}

void principal_axes(Arena& scratch, const double* gram, const double* basis, int64_t size, int64_t num_columns,
                    int64_t num_axes, double* eigenvalues, float* axes) {
  Arena::Scope scope(scratch);
  double* rotation = scratch.allocate<double>(num_axes * size);
  principal_rotation(scratch, gram, size, num_axes, eigenvalues, rotation);
  double* axis = scratch.allocate<double>(num_columns);
  for (int64_t k = 0; k < num_axes; ++k) {
    std::fill(axis, axis + num_columns, 0.0);
    for (int64_t i = 0; i < size; ++i) {
      const double weight = rotation[k * size + i];
      for (int64_t c = 0; c < num_columns; ++c) axis[c] += weight * basis[i * num_columns + c];
    }
    fix_sign(axis, num_columns, axes + k * num_columns);
  }
}

}  // namespace limbeck
