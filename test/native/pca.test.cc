#include "ops/pca.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

/// Rows = mean + Σ_k normal·scale_k·axis_k with known orthonormal axes (products of Householder reflections).
struct Sample {
  Sample(int64_t num_rows, int64_t num_columns, const std::vector<double>& scales, double offset)
      : rows(num_rows), columns(num_columns), x(static_cast<size_t>(num_rows * num_columns)) {
    const Philox random{21, 0};
    std::vector<double> direction(static_cast<size_t>(columns));
    double length = 0;
    for (int64_t c = 0; c < columns; ++c) {
      direction[c] = random.normal(static_cast<uint64_t>(c));
      length += direction[c] * direction[c];
    }
    const Philox coefficients{21, 1};
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<double> row(static_cast<size_t>(columns), 0.0);
      double projection = 0;
      for (size_t k = 0; k < scales.size(); ++k) {
        row[k] = scales[k] * coefficients.normal(static_cast<uint64_t>(r) * scales.size() + k);
        projection += row[k] * direction[k];
      }
      for (int64_t c = 0; c < columns; ++c) {
        const double reflected = row[c] - 2 * projection * direction[c] / length;
        x[r * columns + c] = static_cast<float>(reflected + offset * (c % 3));
      }
    }
  }
  int64_t rows, columns;
  std::vector<float> x;
};

/// Covariance of x and its eigenvalues by the plain two-sided Jacobi method, in double, largest first.
std::vector<double> exact_variances(const Sample& sample) {
  const int64_t n = sample.columns;
  std::vector<double> mean(static_cast<size_t>(n), 0.0), a(static_cast<size_t>(n * n), 0.0);
  for (int64_t r = 0; r < sample.rows; ++r) {
    for (int64_t c = 0; c < n; ++c) mean[c] += sample.x[r * n + c] / static_cast<double>(sample.rows);
  }
  for (int64_t r = 0; r < sample.rows; ++r) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        a[i * n + j] +=
            (sample.x[r * n + i] - mean[i]) * (sample.x[r * n + j] - mean[j]) / static_cast<double>(sample.rows - 1);
      }
    }
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        if (std::fabs(a[p * n + q]) < 1e-300) continue;
        const double angle = 0.5 * std::atan2(2 * a[p * n + q], a[p * n + p] - a[q * n + q]);
        const double cosine = std::cos(angle), sine = std::sin(angle);
        for (int64_t i = 0; i < n; ++i) {
          const double x = a[i * n + p], y = a[i * n + q];
          a[i * n + p] = cosine * x + sine * y;
          a[i * n + q] = -sine * x + cosine * y;
        }
        for (int64_t i = 0; i < n; ++i) {
          const double x = a[p * n + i], y = a[q * n + i];
          a[p * n + i] = cosine * x + sine * y;
          a[q * n + i] = -sine * x + cosine * y;
        }
      }
    }
  }
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(a[i * n + i]);
  std::sort(out.rbegin(), out.rend());
  return out;
}

struct Result {
  std::vector<float> mean, components, variance;
};

Result run(const Sample& sample, int64_t num_components, int num_threads = 2, uint64_t seed = 7) {
  const float poison = std::numeric_limits<float>::quiet_NaN();
  Result out{std::vector<float>(static_cast<size_t>(sample.columns), poison),
             std::vector<float>(static_cast<size_t>(sample.columns * num_components), poison),
             std::vector<float>(static_cast<size_t>(num_components), poison)};
  ThreadPool pool(num_threads);
  Arena arena;
  Context context{pool, arena};
  pca(context, sample.x.data(), sample.rows, sample.columns, num_components, seed, out.mean.data(),
      out.components.data(), out.variance.data());
  return out;
}

double largest_orthonormality_error(const Result& result, int64_t num_components, int64_t columns) {
  double largest = 0;
  for (int64_t i = 0; i < num_components; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) {
        sum += static_cast<double>(result.components[i * columns + c]) * result.components[j * columns + c];
      }
      largest = std::fmax(largest, std::fabs(sum - (i == j)));
    }
  }
  return largest;
}

/// Σ over rows of ‖centred row − its projection‖² over Σ ‖centred row‖².
double residual_share(const Sample& sample, const Result& result, int64_t num_components) {
  double residual = 0, total = 0;
  for (int64_t r = 0; r < sample.rows; ++r) {
    double norm = 0;
    for (int64_t c = 0; c < sample.columns; ++c) {
      const double value = sample.x[r * sample.columns + c] - result.mean[c];
      norm += value * value;
    }
    total += norm;
    residual += norm;
    for (int64_t k = 0; k < num_components; ++k) {
      double projection = 0;
      for (int64_t c = 0; c < sample.columns; ++c) {
        projection += (static_cast<double>(sample.x[r * sample.columns + c]) - result.mean[c]) *
                      result.components[k * sample.columns + c];
      }
      residual -= projection * projection;
    }
  }
  return residual / total;
}

std::string code_of(const Sample& sample, int64_t num_components) {
  try {
    run(sample, num_components);
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

std::vector<double> geometric(int64_t count, double ratio) {
  std::vector<double> out(1, 10.0);
  while (static_cast<int64_t>(out.size()) < count) out.push_back(out.back() * ratio);
  return out;
}

}  // namespace

TEST("pca finds the exact variances of a falling spectrum, on a large offset") {
  const Sample sample(700, 40, geometric(40, 0.8), 50.0);
  const auto exact = exact_variances(sample);
  const Result result = run(sample, 12);
  CHECK(largest_orthonormality_error(result, 12, 40) < 1e-6);
  double captured = 0, total = 0;
  for (double variance : exact) total += variance;
  for (int64_t k = 0; k < 12; ++k) {
    CHECK(std::fabs(result.variance[k] - exact[k]) < 1e-4 * exact[k]);
    captured += exact[k];
  }
  CHECK(std::fabs(residual_share(sample, result, 12) - (1 - captured / total)) < 1e-5);
}

TEST("pca captures a flat spectrum as well as the exact axes do, within 2 %") {
  const Sample sample(2500, 60, std::vector<double>(60, 1.0), 0);
  const auto exact = exact_variances(sample);
  const Result result = run(sample, 20);
  double captured = 0, best = 0;
  for (int64_t k = 0; k < 20; ++k) {
    captured += result.variance[k];
    best += exact[k];
  }
  CHECK(captured > 0.98 * best);
  CHECK(captured < best * (1 + 1e-5));
}

TEST("pca with every component rotates without loss, also with fewer rows than columns") {
  const Sample square(90, 24, geometric(24, 0.7), 3.0);
  const Result all = run(square, 24);
  CHECK(largest_orthonormality_error(all, 24, 24) < 1e-6);
  CHECK(std::fabs(residual_share(square, all, 24)) < 1e-6);
  const Sample wide(9, 50, geometric(30, 0.9), 1.0);
  const Result nine = run(wide, 9);
  CHECK(largest_orthonormality_error(nine, 9, 50) < 1e-6);
  CHECK(std::fabs(residual_share(wide, nine, 9)) < 1e-6);
  CHECK(nine.variance[7] > 0);
  CHECK(nine.variance[8] == 0.0f);  // nine centred rows span eight directions
}

TEST("beyond the rank the components stay orthonormal and their variance is zero") {
  const Sample sample(200, 30, {5, 2, 1}, 4.0);
  const Result result = run(sample, 8);
  CHECK(largest_orthonormality_error(result, 8, 30) < 1e-6);
  for (int64_t k = 0; k < 8; ++k) CHECK((result.variance[k] > 0) == (k < 3));

  Sample constant(20, 6, {}, 2.0);
  const Result nothing = run(constant, 3);
  CHECK(largest_orthonormality_error(nothing, 3, 6) < 1e-6);
  for (float variance : nothing.variance) CHECK(variance == 0.0f);
  const Sample single(1, 5, {1.0}, 0);
  CHECK(run(single, 1).variance[0] == 0.0f);
}

TEST("the largest entry of each component is positive, and the seed alone decides the bits") {
  const Sample sample(300, 20, geometric(20, 0.8), 1.0);
  const Result one = run(sample, 6, 1), two = run(sample, 6, 2);
  CHECK(std::memcmp(one.components.data(), two.components.data(), one.components.size() * sizeof(float)) == 0);
  for (int64_t k = 0; k < 6; ++k) {
    float peak = 0;
    for (int64_t c = 0; c < 20; ++c) {
      const float value = one.components[k * 20 + c];
      if (std::fabs(value) > std::fabs(peak)) peak = value;
    }
    CHECK(peak > 0);
  }
  // Another seed starts elsewhere and arrives at the same axes.
  const Result other = run(sample, 6, 1, 1234);
  for (size_t i = 0; i < one.components.size(); ++i) CHECK(std::fabs(one.components[i] - other.components[i]) < 1e-3);
}

TEST("pca_transform projects the centred rows, over more than one chunk") {
  const Sample sample(2100, 11, geometric(11, 0.7), 2.0);
  const Result result = run(sample, 4);
  std::vector<float> y(2100 * 4, std::numeric_limits<float>::quiet_NaN());
  ThreadPool pool(2);
  Arena arena;
  Context context{pool, arena};
  pca_transform(context, sample.x.data(), result.mean.data(), result.components.data(), y.data(), 2100, 11, 4);
  double largest = 0;
  for (int64_t r = 0; r < 2100; ++r) {
    for (int64_t k = 0; k < 4; ++k) {
      double expected = 0;
      for (int64_t c = 0; c < 11; ++c) {
        expected += (static_cast<double>(sample.x[r * 11 + c]) - result.mean[c]) * result.components[k * 11 + c];
      }
      const double difference = std::fabs(y[r * 4 + k] - expected);
      largest = difference <= largest ? largest : difference;
    }
  }
  CHECK(largest < 1e-4);
}

TEST("pca refuses too many components, none, and data that is not finite") {
  Sample sample(8, 5, {1, 1}, 0);
  CHECK(code_of(sample, 6) == "ERR_INVALID_ARGUMENT");
  CHECK(code_of(sample, 0) == "ERR_INVALID_ARGUMENT");
  sample.x[13] = std::numeric_limits<float>::quiet_NaN();
  CHECK(code_of(sample, 2) == "ERR_INVALID_ARGUMENT");
  sample.x[13] = std::numeric_limits<float>::infinity();
  CHECK(code_of(sample, 2) == "ERR_INVALID_ARGUMENT");
}

TEST("residual_axes are the principal axes about zero of the normalised rows") {
  const int64_t n = 30, num_axes = 9;
  const Sample sample(1500, n, geometric(n, 0.85), 4.0);
  for (const bool subtracts_mean : {false, true}) {
    // Each normalised row and its negative: their mean is zero.
    Sample about_zero(3000, n, {}, 0);
    for (int64_t r = 0; r < 1500; ++r) {
      const float* row = sample.x.data() + r * n;
      double mean = 0, squares = 0;
      for (int64_t c = 0; c < n && subtracts_mean; ++c) mean += row[c] / static_cast<double>(n);
      for (int64_t c = 0; c < n; ++c) squares += (row[c] - mean) * (row[c] - mean) / static_cast<double>(n);
      for (int64_t c = 0; c < n; ++c) {
        const auto value = static_cast<float>((row[c] - mean) / std::sqrt(squares));
        about_zero.x[2 * r * n + c] = value;
        about_zero.x[(2 * r + 1) * n + c] = -value;
      }
    }
    const std::vector<double> exact = exact_variances(about_zero);
    Result result{
        std::vector<float>(n, 0.0f), std::vector<float>(n * num_axes, std::numeric_limits<float>::quiet_NaN()), {}};
    ThreadPool pool(2);
    Arena arena;
    Context context{pool, arena, Precision::kBFloat16};  // makes no difference
    residual_axes(context, sample.x.data(), subtracts_mean, 1500, n, num_axes, 7, result.components.data());
    CHECK(largest_orthonormality_error(result, num_axes, n) < 1e-6);
    double captured = 0, total = 0;
    for (double variance : exact) total += variance;
    for (int64_t k = 0; k < num_axes; ++k) captured += exact[static_cast<size_t>(k)];
    CHECK(std::fabs(residual_share(about_zero, result, num_axes) - (1 - captured / total)) < 1e-4);
    for (int64_t k = 0; k < num_axes && subtracts_mean; ++k) {
      double sum = 0;
      for (int64_t c = 0; c < n; ++c) sum += result.components[k * n + c];
      CHECK(std::fabs(sum) < 1e-5);
    }
    std::vector<float> wrong = sample.x;
    wrong[77] = std::numeric_limits<float>::infinity();
    CHECK_ERROR("ERR_INVALID_ARGUMENT",
                residual_axes(context, wrong.data(), subtracts_mean, 1500, n, num_axes, 7, result.components.data()));
    CHECK_ERROR("ERR_INVALID_ARGUMENT",
                residual_axes(context, sample.x.data(), subtracts_mean, 1500, n, n + 1, 7, result.components.data()));
  }
}
