#include "ops/pca.h"

#include <algorithm>

#include "ops/gemm.h"
#include "ops/norm.h"
#include "ops/pca_common.h"
#include "ops/subspace.h"

namespace limbeck {
namespace {

// Rows prepared at a time: the copy (1024 × columns) stays in cache and x itself is never duplicated.
constexpr int64_t kChunkRows = 1024;
// Keeps a row of zeros zero.
constexpr float kNormEps = 1e-12f;

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

/// Calls visit(projected [rows, size], prepared [rows, num_columns], rows) for each chunk of rows, where
/// prepare(chunk, prepared, rows) says what the axes are found of, and projected is that times basisᵀ.
template <typename Prepare, typename Visit>
void for_each_projected_chunk(Context& context, const float* x, Prepare&& prepare, const float* basis, int64_t num_rows,
                              int64_t num_columns, int64_t size, Visit&& visit) {
  Arena::Scope scope(context.scratch);
  const int64_t chunk_rows = std::min(kChunkRows, num_rows);
  float* prepared = context.scratch.allocate<float>(chunk_rows * num_columns);
  float* projected = context.scratch.allocate<float>(chunk_rows * size);
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    prepare(x + begin * num_columns, prepared, rows);
    gemm(context, rows, size, num_columns, {prepared, num_columns, 1}, {basis, 1, num_columns}, nullptr, projected,
         size, false);
    visit(projected, prepared, rows);
  }
}

/// Principal axes about zero of the prepared rows X, largest first.
///   eigenvalues [num_axes] = of XᵀX; axes [num_axes, num_columns] = orthonormal rows
template <typename Prepare>
void find_axes(Context& context, const float* x, const Prepare& prepare, int64_t num_rows, int64_t num_columns,
               int64_t num_axes, uint64_t seed, double* eigenvalues, float* axes) {
  Arena::Scope scope(context.scratch);
  Arena& scratch = context.scratch;
  const int64_t size = std::min(num_axes + kOversampling, num_columns);

  // Subspace iteration on the row space: basis ← orthonormal(basis·XᵀX), never forming XᵀX.
  double* basis = scratch.allocate<double>(size * num_columns);
  float* basis_f32 = scratch.allocate<float>(size * num_columns);
  float* product = scratch.allocate<float>(size * num_columns);
  double* lengths = scratch.allocate<double>(size);
  random_directions(context.pool, basis, size, num_columns, lengths, seed);
  std::copy(basis, basis + size * num_columns, basis_f32);
  for (int iteration = 0; iteration < kPowerIterations; ++iteration) {
    std::fill(product, product + size * num_columns, 0.0f);
    for_each_projected_chunk(context, x, prepare, basis_f32, num_rows, num_columns, size,
                             [&](const float* projected, const float* prepared, int64_t rows) {
                               gemm(context, size, num_columns, rows, {projected, 1, size}, {prepared, num_columns, 1},
                                    nullptr, product, num_columns, true);
                             });
    std::copy(product, product + size * num_columns, basis);
    orthonormalise_rows(context.pool, basis, size, num_columns, lengths, seed);
    std::copy(basis, basis + size * num_columns, basis_f32);
  }

  // Rayleigh–Ritz: the principal axes inside the subspace. Chunks are summed in double.
  double* gram = scratch.allocate<double>(size * size);
  float* chunk_gram = scratch.allocate<float>(size * size);
  std::fill(gram, gram + size * size, 0.0);
  for_each_projected_chunk(
      context, x, prepare, basis_f32, num_rows, num_columns, size,
      [&](const float* projected, const float*, int64_t rows) {
        gemm(context, size, size, rows, {projected, 1, size}, {projected, size, 1}, nullptr, chunk_gram, size, false);
        for (int64_t i = 0; i < size * size; ++i) gram[i] += chunk_gram[i];
      });
  principal_axes(scratch, gram, basis, size, num_columns, num_axes, eigenvalues, axes);
}

}  // namespace

void pca(Context& context, const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed,
         float* mean, float* components, float* explained_variance) {
  check_num_components(num_rows, num_columns, num_components);
  Arena::Scope scope(context.scratch);
  column_means(context.pool, x, num_rows, num_columns, context.scratch.allocate<double>(num_columns), mean);
  check_means(mean, num_columns);
  double* eigenvalues = context.scratch.allocate<double>(num_components);
  const auto centre = [&](const float* chunk, float* centred, int64_t rows) {
    centre_rows(context.pool, chunk, mean, centred, rows, num_columns);
  };
  find_axes(context, x, centre, num_rows, num_columns, num_components, seed, eigenvalues, components);
  explained_variances(eigenvalues, num_rows, num_components, explained_variance);
}

void pca_transform(Context& context, const float* x, const float* mean, const float* components, float* y,
                   int64_t num_rows, int64_t num_columns, int64_t num_components) {
  const auto centre = [&](const float* chunk, float* centred, int64_t rows) {
    centre_rows(context.pool, chunk, mean, centred, rows, num_columns);
  };
  for_each_projected_chunk(context, x, centre, components, num_rows, num_columns, num_components,
                           [&](const float* projected, const float*, int64_t rows) {
                             std::copy(projected, projected + rows * num_components, y);
                             y += rows * num_components;
                           });
}

void residual_axes(Context& any_precision, const float* x, bool subtracts_mean, int64_t num_rows, int64_t num_columns,
                   int64_t num_axes, uint64_t seed, float* axes) {
  check_num_components(num_rows, num_columns, num_axes);
  Context context{any_precision.pool, any_precision.scratch};
  Arena::Scope scope(context.scratch);
  Arena& scratch = context.scratch;
  float* gain = scratch.allocate<float>(num_columns);
  float* bias = scratch.allocate<float>(num_columns);
  column_means(context.pool, x, num_rows, num_columns, scratch.allocate<double>(num_columns), bias);
  check_means(bias, num_columns);
  std::fill_n(gain, num_columns, 1.0f);
  std::fill_n(bias, num_columns, 0.0f);
  float* mean = scratch.allocate<float>(kChunkRows);
  float* rstd = scratch.allocate<float>(kChunkRows);
  const auto normalise = [&](const float* chunk, float* y, int64_t rows) {
    if (subtracts_mean) {
      layer_norm_forward(context, chunk, gain, bias, y, mean, rstd, rows, num_columns, kNormEps);
    } else {
      rms_norm_forward(context, chunk, gain, y, rstd, rows, num_columns, kNormEps);
    }
  };
  double* eigenvalues = scratch.allocate<double>(num_axes);
  find_axes(context, x, normalise, num_rows, num_columns, num_axes, seed, eigenvalues, axes);
}

}  // namespace limbeck
