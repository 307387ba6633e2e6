#include "cuda/pca.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/pca_products.h"
#include "ops/pca_common.h"
#include "ops/subspace.h"

namespace limbeck::cuda {
namespace {

// Rows projected at a time: enough to fill the GPU, and the projections of more would only take memory. Numbers of x in
// one piece of pca_transform().
#ifdef LIMBECK_CUDA_EMULATED
constexpr int64_t kChunkRows = 128, kPieceNumbers = 1024;  // small tests have several
#else
constexpr int64_t kChunkRows = 65536, kPieceNumbers = int64_t{16} << 20;
#endif

/// How rows become orthonormal, told from their Gram matrix.
struct Orthonormaliser {
  std::vector<double> transform;   // [size, size], the new rows are transform·rows
  std::vector<int64_t> dependent;  // rows without a direction of their own, which become zero
  bool is_last;                    // the new rows are orthonormal up to rounding
};

/// The inverse of the lower Cholesky factor of gram [size, size], of which the lower triangle is read, after the rows
/// are scaled to length 1. Of a row that is nearly a sum of earlier ones, what is left is rounding noise in part: its
/// pivot is taken larger than it is, which makes the row longer, but not yet orthogonal to all others. So the rows
/// come nearer to each other's length and right angles from round to round (shifted Cholesky QR, Fukaya et al. 2020,
/// arXiv:1809.11085). With `replaces`, and where a row is zero or not finite, it is dependent instead.
Orthonormaliser orthonormaliser(std::vector<double> gram, int64_t size, bool replaces) {
  // Less than this share of a squared length cannot be told from the rounding of the Gram matrix.
  const double least_pivot = 1e-14 * static_cast<double>(size);
  const auto row = [&](std::vector<double>& matrix, int64_t i) { return matrix.data() + i * size; };
  std::vector<double> scale(static_cast<size_t>(size), 0.0);
  for (int64_t i = 0; i < size; ++i) {
    const double square = row(gram, i)[i];
    if (square > 0 && std::isfinite(square)) scale[static_cast<size_t>(i)] = 1 / std::sqrt(square);
  }
  // The upper factor, row by row, so that the inner loops walk rows. A row that is left out stays zero.
  std::vector<double> factor(static_cast<size_t>(size * size), 0.0);
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double both = scale[static_cast<size_t>(i)] * scale[static_cast<size_t>(j)];
      const double cosine = both > 0 ? row(gram, i)[j] * both : 0.0;
      row(factor, j)[i] = i == j && both > 0 ? 1.0 : cosine;
      if (j < i) largest = std::max(largest, std::fabs(cosine));
    }
  }
  Orthonormaliser result{std::vector<double>(static_cast<size_t>(size * size), 0.0), {}, false};
  for (int64_t i = 0; i < size; ++i) {
    double* pivot_row = row(factor, i);
    const double pivot = pivot_row[i];
    if (scale[static_cast<size_t>(i)] == 0 || (replaces && !(pivot > least_pivot))) {
      result.dependent.push_back(i);
      std::fill(pivot_row, pivot_row + size, 0.0);
      continue;
    }
    const double inverse = 1 / std::sqrt(std::max(pivot, least_pivot));
    pivot_row[i] = 1 / inverse;
    for (int64_t k = i + 1; k < size; ++k) pivot_row[k] *= inverse;
    for (int64_t j = i + 1; j < size; ++j) {
      const double weight = pivot_row[j];
      if (weight == 0) continue;
      double* other = row(factor, j);
      for (int64_t k = j; k < size; ++k) other[k] -= weight * pivot_row[k];
    }
    double* out = row(result.transform, i);
    for (int64_t j = 0; j < i; ++j) {
      const double weight = row(factor, j)[i];
      if (weight == 0) continue;
      const double* earlier = row(result.transform, j);
      for (int64_t k = 0; k <= j; ++k) out[k] -= weight * earlier[k];
    }
    out[i] = 1;
    for (int64_t k = 0; k <= i; ++k) out[k] *= inverse;
  }
  for (int64_t i = 0; i < size; ++i) {
    double* out = row(result.transform, i);
    for (int64_t k = 0; k <= i; ++k) out[k] *= scale[static_cast<size_t>(k)];
  }
  // Then the condition is at most 2, and one Cholesky QR is exact.
  result.is_last = result.dependent.empty() && largest * static_cast<double>(size) < 0.5;
  return result;
}

/// Rows of a subspace, with what it takes to make them orthonormal.
class Basis {
 public:
  Basis(Context& context, int64_t size, int64_t num_columns, uint64_t seed)
      : context_(context), size_(size), num_columns_(num_columns), seed_(seed) {
    DeviceArena& arena = context.arena;
    rows_ = arena.allocate<double>(size * num_columns);
    spare_ = arena.allocate<double>(size * num_columns);
    square_ = arena.allocate<double>(size * size);
  }

  double* rows() { return rows_; }
  /// [size, size]
  double* square() { return square_; }

  /// As random_directions().
  void start() {
    if (!context_.is_dry) {
      host_rows_.resize(static_cast<size_t>(size_ * num_columns_));
      for (int64_t i = 0; i < size_; ++i) {
        random_direction(host_rows_.data() + i * num_columns_, num_columns_, seed_, i, 0);
      }
    }
    copy_to_device(context_, rows_, host_rows_.data(), size_ * num_columns_);
    orthonormalise();
  }

  void orthonormalise() {
    // Two rounds do for well conditioned rows, three for as bad ones as products in fp32 can be, five where there are
    // fewer directions than rows.
    constexpr int kMaxRounds = 10, kFirstReplacing = 2;
    std::vector<double> gram(static_cast<size_t>(size_ * size_));
    for (int round = 0; round < kMaxRounds; ++round) {
      gram_of_rows(context_, rows_, square_, size_, num_columns_);
      copy_to_host(context_, gram.data(), square_, size_ * size_);
      synchronize(context_);
      Orthonormaliser step{};
      if (!context_.is_dry) step = orthonormaliser(gram, size_, round >= kFirstReplacing);
      copy_to_device(context_, square_, step.transform.data(), size_ * size_);
      transform_rows(context_, square_, rows_, spare_, size_, size_, num_columns_);
      std::swap(rows_, spare_);
      host_rows_.resize(step.dependent.size() * static_cast<size_t>(num_columns_));
      double* direction = host_rows_.data();
      for (int64_t i : step.dependent) {
        random_direction(direction, num_columns_, seed_, i, static_cast<uint64_t>(round) + 1);
        copy_to_device(context_, rows_ + i * num_columns_, direction, num_columns_);
        direction += num_columns_;
      }
      synchronize(context_);  // the host's memory may go
      if (step.is_last || context_.is_dry) return;
    }
    orthonormalise_on_host();
  }

  /// axes [num_axes, num_columns] on the host = rotation [num_axes, size] on the host, times the rows.
  void rotate(const std::vector<double>& rotation, int64_t num_axes, float* axes) {
    copy_to_device(context_, square_, rotation.data(), num_axes * size_);
    transform_rows(context_, square_, rows_, spare_, num_axes, size_, num_columns_);
    if (context_.is_dry) return;
    host_rows_.resize(static_cast<size_t>(num_axes * num_columns_));
    copy_to_host(context_, host_rows_.data(), spare_, num_axes * num_columns_);
    synchronize(context_);
    for (int64_t k = 0; k < num_axes; ++k) {
      fix_sign(host_rows_.data() + k * num_columns_, num_columns_, axes + k * num_columns_);
    }
  }

 private:
  /// One row after the other: slow, and sure.
  void orthonormalise_on_host() {
    host_rows_.resize(static_cast<size_t>(size_ * num_columns_));
    copy_to_host(context_, host_rows_.data(), rows_, size_ * num_columns_);
    synchronize(context_);
    ThreadPool pool(1);
    std::vector<double> lengths(static_cast<size_t>(size_));
    orthonormalise_rows(pool, host_rows_.data(), size_, num_columns_, lengths.data(), seed_);
    copy_to_device(context_, rows_, host_rows_.data(), size_ * num_columns_);
    synchronize(context_);
  }

  Context& context_;
  const int64_t size_, num_columns_;
  const uint64_t seed_;
  double *rows_, *spare_, *square_;
  std::vector<double> host_rows_;  // under way to or from the device
};

}  // namespace

void pca(Context& context, const float* host_x, int64_t num_rows, int64_t num_columns, int64_t num_components,
         uint64_t seed, float* host_mean, float* host_components, float* host_explained_variance) {
  check_num_components(num_rows, num_columns, num_components);
  const DeviceArena::Scope scope(context.arena);
  DeviceArena& arena = context.arena;
  const int64_t size = std::min(num_components + kOversampling, num_columns);
  const int64_t chunk_rows = std::min(kChunkRows, num_rows);
  float* x = arena.allocate<float>(num_rows * num_columns);
  float* mean = arena.allocate<float>(num_columns);
  float* directions = arena.allocate<float>(size * num_columns);
  float* product = arena.allocate<float>(size * num_columns);
  float* projected = arena.allocate<float>(chunk_rows * size);
  Basis basis(context, size, num_columns, seed);

  copy_to_device(context, x, host_x, num_rows * num_columns);
  column_means(context, x, mean, num_rows, num_columns);
  copy_to_host(context, host_mean, mean, num_columns);
  synchronize(context);
  if (!context.is_dry) check_means(host_mean, num_columns);
  centre_rows(context, mean, x, num_rows, num_columns);

  // visit(chunk of x, rows), with the chunk times directionsᵀ in `projected` [rows, size].
  const auto for_each_projected_chunk = [&](auto&& visit) {
    convert_numbers<double, float>(context, basis.rows(), directions, size * num_columns);
    for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
      const int64_t rows = std::min(chunk_rows, num_rows - begin);
      const float* chunk = x + begin * num_columns;
      const GemmShape shape{rows, size, num_columns, false, true, num_columns, num_columns, size};
      gemm<float, float>(context, shape, chunk, directions, nullptr, nullptr, projected);
      visit(chunk, rows, begin == 0);
    }
  };
  // Subspace iteration on the row space: basis ← orthonormal(basis·XᵀX), never forming XᵀX.
  basis.start();
  for (int iteration = 0; iteration < kPowerIterations; ++iteration) {
    for_each_projected_chunk([&](const float* chunk, int64_t rows, bool is_first) {
      const GemmShape shape{size, num_columns, rows, true, false, size, num_columns, num_columns};
      gemm<float, float>(context, shape, projected, chunk, nullptr, is_first ? nullptr : product, product);
    });
    convert_numbers<float, double>(context, product, basis.rows(), size * num_columns);
    basis.orthonormalise();
  }

  // Rayleigh–Ritz: the principal axes inside the subspace.
  for_each_projected_chunk([&](const float*, int64_t rows, bool is_first) {
    gram_of_columns(context, projected, basis.square(), rows, size, !is_first);
  });
  std::vector<double> rotation;
  if (!context.is_dry) {
    std::vector<double> gram(static_cast<size_t>(size * size)), eigenvalues(static_cast<size_t>(num_components));
    copy_to_host(context, gram.data(), basis.square(), size * size);
    synchronize(context);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = i + 1; j < size; ++j) gram[i * size + j] = gram[j * size + i];
    }
    rotation.resize(static_cast<size_t>(num_components * size));
    Arena scratch;
    principal_rotation(scratch, gram.data(), size, num_components, eigenvalues.data(), rotation.data());
    explained_variances(eigenvalues.data(), num_rows, num_components, host_explained_variance);
  }
  basis.rotate(rotation, num_components, host_components);
}

void pca_transform(Context& context, const float* host_x, const float* host_mean, const float* host_components,
                   float* host_y, int64_t num_rows, int64_t num_columns, int64_t num_components) {
  const DeviceArena::Scope scope(context.arena);
  DeviceArena& arena = context.arena;
  const int64_t piece_rows = std::clamp<int64_t>(kPieceNumbers / num_columns, 1, num_rows);
  float* mean = arena.allocate<float>(num_columns);
  float* components = arena.allocate<float>(num_components * num_columns);
  float* x = arena.allocate<float>(piece_rows * num_columns);
  float* y = arena.allocate<float>(piece_rows * num_components);
  copy_to_device(context, mean, host_mean, num_columns);
  copy_to_device(context, components, host_components, num_components * num_columns);
  for (int64_t begin = 0; begin < num_rows; begin += piece_rows) {
    const int64_t rows = std::min(piece_rows, num_rows - begin);
    copy_to_device(context, x, host_x + begin * num_columns, rows * num_columns);
    centre_rows(context, mean, x, rows, num_columns);
    const GemmShape shape{rows, num_components, num_columns, false, true, num_columns, num_columns, num_components};
    gemm<float, float>(context, shape, x, components, nullptr, nullptr, y);
    copy_to_host(context, host_y + begin * num_components, y, rows * num_components);
  }
  synchronize(context);
}

}  // namespace limbeck::cuda
