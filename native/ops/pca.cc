#include "ops/pca.h"

#include <algorithm>

#include "ops/gemm.h"
#include "ops/pca_common.h"
#include "ops/subspace.h"

namespace limbeck {
namespace {

// Rows centred at a time: the copy (1024 × columns) stays in cache and x itself is never duplicated.
constexpr int64_t kChunkRows = 1024;

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

}  // namespace

void pca(Context& context, const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed,
         float* mean, float* components, float* explained_variance) {
  check_num_components(num_rows, num_columns, num_components);
  Arena::Scope scope(context.scratch);
  Arena& scratch = context.scratch;
  const int64_t size = std::min(num_components + kOversampling, num_columns);

  column_means(context.pool, x, num_rows, num_columns, scratch.allocate<double>(num_columns), mean);
  check_means(mean, num_columns);

  // Subspace iteration on the row space: basis ← orthonormal(basis·XᵀX), never forming XᵀX.
  double* basis = scratch.allocate<double>(size * num_columns);
  float* basis_f32 = scratch.allocate<float>(size * num_columns);
  float* product = scratch.allocate<float>(size * num_columns);
  double* lengths = scratch.allocate<double>(size);
  random_directions(context.pool, basis, size, num_columns, lengths, seed);
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
  double* eigenvalues = scratch.allocate<double>(num_components);
  float* chunk_gram = scratch.allocate<float>(size * size);
  std::fill(gram, gram + size * size, 0.0);
  for_each_projected_chunk(
      context, x, mean, basis_f32, num_rows, num_columns, size,
      [&](const float* projected, const float*, int64_t rows) {
        gemm(context, size, size, rows, {projected, 1, size}, {projected, size, 1}, nullptr, chunk_gram, size, false);
        for (int64_t i = 0; i < size * size; ++i) gram[i] += chunk_gram[i];
      });
  principal_axes(context.scratch, gram, basis, size, num_columns, num_components, eigenvalues, components);
  explained_variances(eigenvalues, num_rows, num_components, explained_variance);
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
