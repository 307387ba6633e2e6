#include "ops/pca_common.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"

namespace limbeck {
namespace {

// A singular value below this share of the largest is rounding noise of float32 products.
constexpr double kRankTolerance = 2e-6;

}  // namespace

void check_num_components(int64_t num_rows, int64_t num_columns, int64_t num_components) {
  const int64_t rank = std::min(num_rows, num_columns);
  if (num_components < 1 || num_components > rank) {
    throw Error("ERR_INVALID_ARGUMENT", "pca expects 1 to min(rows, columns) = " + std::to_string(rank) +
                                            " components, got " + std::to_string(num_components));
  }
}

void check_means(const float* mean, int64_t num_columns) {
  for (int64_t c = 0; c < num_columns; ++c) {
    if (!std::isfinite(mean[c])) {
      throw Error("ERR_INVALID_ARGUMENT", "pca expects finite numbers; column " + std::to_string(c) +
                                              " holds NaN or infinity. Drop or repair those rows first");
    }
  }
}

void explained_variances(const double* eigenvalues, int64_t num_rows, int64_t num_components,
                         float* explained_variance) {
  for (int64_t k = 0; k < num_components; ++k) {
    const double eigenvalue = eigenvalues[k];
    const bool is_noise = eigenvalue <= kRankTolerance * kRankTolerance * eigenvalues[0] || num_rows < 2;
    explained_variance[k] = is_noise ? 0.0f : static_cast<float>(eigenvalue / static_cast<double>(num_rows - 1));
  }
}

}  // namespace limbeck
