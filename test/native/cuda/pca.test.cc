#include "cuda/pca.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "cuda/pca_products.h"
#include "device_test.h"
#include "ops/pca.h"
#include "test.h"

using namespace limbeck;
using namespace limbeck_test;

namespace {

struct Shape {
  int64_t rows, columns, components;
};

struct Result {
  std::vector<float> mean, components, variance;
  explicit Result(const Shape& shape)
      : mean(shape.columns, std::numeric_limits<float>::quiet_NaN()),
        components(shape.components * shape.columns, std::numeric_limits<float>::quiet_NaN()),
        variance(shape.components, std::numeric_limits<float>::quiet_NaN()) {}
};

Result on_device(const std::vector<float>& x, const Shape& shape, uint64_t seed = 7) {
  TestDevice device;
  Result out(shape);
  cuda::pca(device.context, x.data(), shape.rows, shape.columns, shape.components, seed, out.mean.data(),
            out.components.data(), out.variance.data());
  return out;
}

Result on_host(const std::vector<float>& x, const Shape& shape, uint64_t seed = 7) {
  ThreadPool pool(1);
  Arena arena;
  limbeck::Context context{pool, arena};
  Result out(shape);
  pca(context, x.data(), shape.rows, shape.columns, shape.components, seed, out.mean.data(), out.components.data(),
      out.variance.data());
  return out;
}

/// Σ over directions of scales[i]·(normal score)·(random direction), on `offset`.
std::vector<float> sample(const Shape& shape, const std::vector<double>& scales, float offset = 0) {
  const int64_t rank = static_cast<int64_t>(scales.size());
  const auto scores = random_floats(shape.rows * rank, 11), directions = random_floats(rank * shape.columns, 12);
  std::vector<float> x(shape.rows * shape.columns);
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t c = 0; c < shape.columns; ++c) {
      double sum = offset;
      for (int64_t i = 0; i < rank; ++i) {
        sum += scales[i] * static_cast<double>(scores[r * rank + i]) * directions[i * shape.columns + c];
      }
      x[r * shape.columns + c] = static_cast<float>(sum);
    }
  }
  return x;
}

std::vector<double> geometric(int64_t count, double ratio) {
  std::vector<double> out(1, 1.0);
  while (static_cast<int64_t>(out.size()) < count) out.push_back(out.back() * ratio);
  return out;
}

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double orthonormality_error(const Result& result, const Shape& shape) {
  double largest = 0;
  for (int64_t i = 0; i < shape.components; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double product = dot(result.components.data() + i * shape.columns,
                                 result.components.data() + j * shape.columns, shape.columns);
      if (!(std::fabs(product - (i == j)) <= largest)) largest = std::fabs(product - (i == j));
    }
  }
  return largest;
}

/// The largest sine between one of the first `count` components of `a` and the span of those of `b`.
double largest_sine(const Result& a, const Result& b, const Shape& shape, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<double> rest(a.components.begin() + i * shape.columns, a.components.begin() + (i + 1) * shape.columns);
    for (int64_t j = 0; j < count; ++j) {
      const float* axis = b.components.data() + j * shape.columns;
      const double cosine = dot(a.components.data() + i * shape.columns, axis, shape.columns);
      for (int64_t c = 0; c < shape.columns; ++c) rest[c] -= cosine * axis[c];
    }
    double square = 0;
    for (double value : rest) square += value * value;
    if (!(std::sqrt(square) <= largest)) largest = std::sqrt(square);
  }
  return largest;
}

bool peaks_are_positive(const Result& result, const Shape& shape) {
  for (int64_t k = 0; k < shape.components; ++k) {
    float peak = 0;
    for (int64_t c = 0; c < shape.columns; ++c) {
      const float value = result.components[k * shape.columns + c];
      if (std::fabs(value) > std::fabs(peak)) peak = value;
    }
    if (!(peak > 0)) return false;
  }
  return true;
}

/// Means, variances and the axes that have some, each by itself, as on the processor.
void expect_same(const std::vector<float>& x, const Shape& shape, double axis_tolerance) {
  const Result actual = on_device(x, shape), expected = on_host(x, shape);
  CHECK(orthonormality_error(actual, shape) < 1e-6);
  CHECK(peaks_are_positive(actual, shape));
  for (int64_t c = 0; c < shape.columns; ++c) {
    CHECK(std::fabs(actual.mean[c] - expected.mean[c]) <= 1e-6f * std::fabs(expected.mean[c]));
  }
  int64_t rank = 0;
  for (int64_t k = 0; k < shape.components; ++k) {
    CHECK((actual.variance[k] > 0) == (expected.variance[k] > 0));
    CHECK(std::fabs(actual.variance[k] - expected.variance[k]) <= 1e-5f * expected.variance[0]);
    if (expected.variance[k] > 0) ++rank;
  }
  CHECK(largest_sine(actual, expected, shape, rank) < axis_tolerance);
  for (int64_t k = 0; k < rank; ++k) {
    CHECK(dot(actual.components.data() + k * shape.columns, expected.components.data() + k * shape.columns,
              shape.columns) > 1 - axis_tolerance);
  }
}

std::vector<double> lower(const std::vector<double>& square, int64_t size) {
  std::vector<double> out;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j <= i; ++j) out.push_back(square[i * size + j]);
  }
  return out;
}

template <typename T>
double largest_difference(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = a.size() == b.size() ? 0 : 1e30;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

std::string code_of(const std::vector<float>& x, const Shape& shape) {
  try {
    on_device(x, shape);
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

}  // namespace

TEST("pca on the GPU finds the axes and variances of the processor") {
  const Shape tall{700, 40, 12}, odd{333, 77, 5}, one{57, 9, 1}, column{41, 1, 1};
  expect_same(sample(tall, geometric(40, 0.8), 50), tall, 1e-3);
  expect_same(sample(odd, geometric(30, 0.7)), odd, 1e-4);
  expect_same(sample(one, geometric(9, 0.6), -3), one, 1e-5);
  expect_same(random_floats(41, 5), column, 1e-6);
}

TEST("pca on the GPU has more columns than rows, and as many components as there are") {
  const Shape wide{9, 150, 9}, square{90, 24, 24};
  expect_same(sample(wide, geometric(30, 0.9), 1), wide, 1e-3);
  expect_same(sample(square, geometric(24, 0.7), 3), square, 1e-3);
  const Result nine = on_device(sample(wide, geometric(30, 0.9), 1), wide);
  CHECK(nine.variance[7] > 0);
  CHECK(nine.variance[8] == 0.0f);  // nine centred rows span eight directions
}

TEST("pca on the GPU fills up with orthonormal components beyond the rank, of variance zero") {
  const Shape low{200, 70, 8};
  expect_same(sample(low, {5, 2, 1}, 4), low, 1e-4);

  // Three columns vary: whatever the products are, most rows of the subspace have no direction of their own.
  std::vector<float> sparse(200 * 70, 2.0f);
  const auto noise = random_floats(200 * 3, 3);
  for (int64_t r = 0; r < 200; ++r) {
    for (int64_t i = 0; i < 3; ++i) sparse[r * 70 + 20 * i + 7] += noise[r * 3 + i] * static_cast<float>(i + 1);
  }
  expect_same(sparse, low, 1e-3);

  const Shape constant{20, 6, 3}, single{1, 5, 1};
  for (const auto& [x, shape] :
       {std::make_pair(std::vector<float>(120, 2.5f), constant), std::make_pair(random_floats(5, 1), single)}) {
    const Result result = on_device(x, shape);
    CHECK(orthonormality_error(result, shape) < 1e-6);
    for (float variance : result.variance) CHECK(variance == 0.0f);
  }
}

TEST("pca on the GPU keeps directions of very different sizes apart") {
  // Squared by each product, they cover all that fp32 holds, and more.
  const Shape shape{400, 60, 20};
  const auto x = sample(shape, geometric(40, 0.5));
  const Result actual = on_device(x, shape), expected = on_host(x, shape);
  CHECK(orthonormality_error(actual, shape) < 1e-6);
  CHECK(largest_sine(actual, expected, shape, 10) < 1e-4);
  for (int64_t k = 0; k < 10; ++k) CHECK(std::fabs(actual.variance[k] / expected.variance[k] - 1) < 1e-3f);
}

TEST("pca on the GPU gives the same bits, and the same axes from another seed") {
  const Shape shape{500, 30, 6};
  const auto x = sample(shape, geometric(30, 0.75), 1);
  const Result first = on_device(x, shape), again = on_device(x, shape), other = on_device(x, shape, 1234);
  CHECK(same_bits(first.components, again.components));
  CHECK(same_bits(first.variance, again.variance));
  CHECK(!same_bits(first.components, other.components));
  CHECK(largest_difference(first.components, other.components) < 1e-3);
}

TEST("pca on the GPU refuses too many components, none, and data that is not finite") {
  std::vector<float> x = random_floats(40, 2);
  CHECK(code_of(x, {8, 5, 6}) == "ERR_INVALID_ARGUMENT");
  CHECK(code_of(x, {8, 5, 0}) == "ERR_INVALID_ARGUMENT");
  x[13] = std::numeric_limits<float>::quiet_NaN();
  CHECK(code_of(x, {8, 5, 2}) == "ERR_INVALID_ARGUMENT");
  x[13] = -std::numeric_limits<float>::infinity();
  CHECK(code_of(x, {8, 5, 2}) == "ERR_INVALID_ARGUMENT");
}

TEST("pca_transform on the GPU projects the centred rows, in one piece and in several") {
  ThreadPool pool(1);
  Arena arena;
  limbeck::Context host{pool, arena};
  TestDevice device;
  for (const Shape& shape : {Shape{210, 11, 4}, Shape{1, 3, 1}}) {
    const auto x = random_floats(shape.rows * shape.columns, 4, 3), mean = random_floats(shape.columns, 5);
    const auto components = random_floats(shape.components * shape.columns, 6, 1 / std::sqrt(float(shape.columns)));
    std::vector<float> actual(shape.rows * shape.components, std::numeric_limits<float>::quiet_NaN()), expected(actual);
    cuda::pca_transform(device.context, x.data(), mean.data(), components.data(), actual.data(), shape.rows,
                        shape.columns, shape.components);
    pca_transform(host, x.data(), mean.data(), components.data(), expected.data(), shape.rows, shape.columns,
                  shape.components);
    CHECK(largest_difference(actual, expected) < 1e-4);
  }
}

TEST("products of pca are those of fp64, over several tiles and slabs") {
  TestDevice device;
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {70, 900}, {130, 33}}) {
    std::vector<double> x;
    for (float value : random_floats(rows * columns, 8)) x.push_back(value);
    std::vector<float> short_x(x.begin(), x.end());
    std::vector<double> by_rows(rows * rows), by_columns(columns * columns), turned(rows * columns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < rows; ++s) {
        for (int64_t c = 0; c < columns; ++c) by_rows[r * rows + s] += x[r * columns + c] * x[s * columns + c];
      }
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t e = 0; e < columns; ++e)
          by_columns[c * columns + e] += 2 * x[r * columns + c] * x[r * columns + e];
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < rows; ++s) {
        for (int64_t c = 0; c < columns; ++c) turned[r * columns + c] += by_rows[r * rows + s] * x[s * columns + c];
      }
    }
    const DeviceArray<double> device_x(x), square(by_rows.size()), gram(by_columns.size()), product(x.size());
    const DeviceArray<float> device_short_x(short_x);
    cuda::gram_of_rows(device.context, device_x.data(), square.data(), rows, columns);
    CHECK(largest_difference(lower(square.get(), rows), lower(by_rows, rows)) < 1e-10);
    cuda::gram_of_columns(device.context, device_short_x.data(), gram.data(), rows, columns, false);
    cuda::gram_of_columns(device.context, device_short_x.data(), gram.data(), rows, columns, true);
    CHECK(largest_difference(lower(gram.get(), columns), lower(by_columns, columns)) < 1e-10);
    const DeviceArray<double> transform(by_rows);
    cuda::transform_rows(device.context, transform.data(), device_x.data(), product.data(), rows, rows, columns);
    CHECK(largest_difference(product.get(), turned) < 1e-8);
  }
}

TEST("means of pca are those of fp64, and centred rows have none") {
  TestDevice device;
  for (const auto& [rows, columns] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 3}, {300, 37}, {70, 300}, {5000, 2}}) {
    std::vector<float> x = random_floats(rows * columns, 9);
    std::vector<double> sums(columns);
    for (int64_t i = 0; i < rows * columns; ++i) sums[i % columns] += x[i] += 100;
    std::vector<float> expected;
    for (double sum : sums) expected.push_back(static_cast<float>(sum / static_cast<double>(rows)));
    const DeviceArray<float> device_x(x), mean(columns);
    cuda::column_means(device.context, device_x.data(), mean.data(), rows, columns);
    CHECK(largest_difference(mean.get(), expected) < 1e-5);
    cuda::centre_rows(device.context, mean.data(), device_x.data(), rows, columns);
    const auto means = mean.get();
    for (int64_t i = 0; i < rows * columns; ++i) x[i] -= means[i % columns];
    CHECK(same_bits(device_x.get(), x));
  }
}
