#include "ops/sparse_svd.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/pca.h"
#include "test.h"

using namespace limbeck;

namespace {

/// About a third of the entries are there; larger in the first columns, so that the spectrum falls.
struct Sample {
  Sample(int64_t num_rows, int64_t num_columns) : rows(num_rows), columns(num_columns), offsets{0} {
    const Philox random{5, 0};
    dense.assign(static_cast<size_t>(rows * columns), 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      // Falling column numbers: the order in a row does not matter.
      for (int64_t c = columns - 1; c >= 0; --c) {
        const uint64_t place = static_cast<uint64_t>(r * columns + c);
        if (random.uniform(2 * place) > 0.33f) continue;
        const float value = random.normal(2 * place + 1) / static_cast<float>(1 + c);
        indices.push_back(static_cast<int32_t>(c));
        values.push_back(value);
        dense[static_cast<size_t>(r * columns + c)] = value;
      }
      offsets.push_back(static_cast<int32_t>(indices.size()));
    }
  }
  SparseMatrix matrix() const { return {offsets.data(), indices.data(), values.data(), rows, columns}; }
  int64_t rows, columns;
  std::vector<int32_t> offsets, indices;
  std::vector<float> values, dense;
};

struct Result {
  std::vector<float> singular_values, components, projected;
};

Result run(const Sample& sample, int64_t num_components, int num_threads = 2, uint64_t seed = 3) {
  const float poison = std::numeric_limits<float>::quiet_NaN();
  Result out{std::vector<float>(static_cast<size_t>(num_components), poison),
             std::vector<float>(static_cast<size_t>(num_components * sample.columns), poison),
             std::vector<float>(static_cast<size_t>(num_components * sample.rows), poison)};
  ThreadPool pool(num_threads);
  Arena arena;
  Context context{pool, arena};
  sparse_svd(context, sample.matrix(), num_components, seed, out.singular_values.data(), out.components.data(),
             out.projected.data());
  return out;
}

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

TEST("sparse_svd with every component gives the matrix back") {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{60, 24}, {9, 40}, {7, 7}, {1, 5}, {5, 1}}) {
    const Sample sample(rows, columns);
    const int64_t rank = rows < columns ? rows : columns;
    const Result result = run(sample, rank);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        double sum = 0;
        for (int64_t k = 0; k < rank; ++k) {
          sum += static_cast<double>(result.projected[r * rank + k]) * result.components[k * columns + c];
        }
        CHECK(std::fabs(sum - sample.dense[static_cast<size_t>(r * columns + c)]) < 1e-5);
      }
    }
  }
}

TEST("sparse_svd gives orthonormal rows, and the lengths of X·Vᵀ fall and are the singular values") {
  const Sample sample(400, 90);
  const Result result = run(sample, 6);
  std::vector<float> column(400);
  for (int64_t k = 0; k < 6; ++k) {
    for (int64_t j = 0; j <= k; ++j) {
      const double product = dot(&result.components[k * 90], &result.components[j * 90], 90);
      CHECK(std::fabs(product - (j == k)) < 1e-6);
    }
    for (int64_t r = 0; r < 400; ++r) column[r] = result.projected[r * 6 + k];
    const double length = std::sqrt(dot(column.data(), column.data(), 400));
    CHECK(std::fabs(length - result.singular_values[k]) < 1e-4 * length);
    CHECK(k == 0 || result.singular_values[k] <= result.singular_values[k - 1]);
  }
}

TEST("sparse_svd captures as much of a matrix as the exact axes do") {
  Sample sample(300, 50);
  // Twice the rows, once negated: the mean is zero, so that pca finds the same axes and values by another way.
  std::vector<float> mirrored(sample.dense);
  for (float value : sample.dense) mirrored.push_back(-value);
  std::vector<float> mean(50), axes(50 * 50), variance(50);
  ThreadPool pool(2);
  Arena arena;
  Context context{pool, arena};
  pca(context, mirrored.data(), 600, 50, 50, 1, mean.data(), axes.data(), variance.data());
  const Result result = run(sample, 8);
  for (int64_t k = 0; k < 8; ++k) {
    const double exact = std::sqrt(variance[k] * 599.0 / 2);
    CHECK(std::fabs(result.singular_values[k] - exact) < 1e-4 * exact);
  }
}

TEST("sparse_svd has the same bits for any thread count, and empty rows are zeros") {
  Sample sample(64, 30);
  for (size_t r = 33; r < sample.offsets.size(); ++r) sample.offsets[r] = sample.offsets[32];
  const Result one = run(sample, 5, 1), three = run(sample, 5, 3);
  CHECK(std::memcmp(one.projected.data(), three.projected.data(), one.projected.size() * sizeof(float)) == 0);
  CHECK(std::memcmp(one.components.data(), three.components.data(), one.components.size() * sizeof(float)) == 0);
  for (size_t i = 32 * 5; i < one.projected.size(); ++i) CHECK(one.projected[i] == 0.0f);
}

TEST("sparse_svd of nothing is zero, with orthonormal rows") {
  Sample sample(4, 6);
  std::fill(sample.offsets.begin(), sample.offsets.end(), 0);
  const Result result = run(sample, 3);
  for (int64_t k = 0; k < 3; ++k) {
    CHECK(result.singular_values[k] == 0.0f);
    CHECK(std::fabs(dot(&result.components[k * 6], &result.components[k * 6], 6) - 1) < 1e-6);
  }
}

TEST("sparse_svd refuses a wrong number of components, offsets, columns and values") {
  const Sample sample(8, 5);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(sample, 6));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(sample, 0));
  Sample bad(8, 5);
  bad.indices[3] = 5;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(bad, 2));
  bad.indices[3] = -1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(bad, 2));
  bad = Sample(8, 5);
  bad.offsets[0] = 1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(bad, 2));
  bad = Sample(8, 5);
  bad.offsets[4] = bad.offsets[3] - 1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(bad, 2));
  bad = Sample(8, 5);
  bad.values[2] = std::numeric_limits<float>::infinity();
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(bad, 2));
}
