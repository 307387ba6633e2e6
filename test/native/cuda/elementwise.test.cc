#include "cuda/elementwise.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "ops/reference.h"

namespace limbeck::cuda {
namespace {

using namespace limbeck_test;

const std::vector<int64_t> kRows = {1, 3, 33, 257};
const std::vector<int64_t> kWidths = {1, 7, 8, 31, 64, 100, 768, 1000};
const std::vector<int64_t> kCounts = {0, 1, 3, 8, 31, 257, 4096, 20001};

/// body(num_rows, width) over shapes, the largest of which is 257 · 1000.
template <typename Body>
void for_each_shape(const Body& body) {
  for (const int64_t num_rows : kRows) {
    for (const int64_t width : kWidths) {
      if (num_rows * width <= 40000 || width == 768) body(num_rows, width);
    }
  }
}

double derivative(double (*function)(double), double x) {
  constexpr double kStep = 1e-5;
  return (function(x + kStep) - function(x - kStep)) / (2 * kStep);
}

/// Activation of each element and its gradients, in double, in the shape of x: [num_rows, width or 2·width].
struct Expected {
  std::vector<double> y, d_x;
};

Expected reference(Activation activation, const std::vector<float>& x, const std::vector<float>& d_y, int64_t num_rows,
                   int64_t width) {
  Expected out;
  if (activation != Activation::kSwiglu) {
    double (*function)(double) =
        activation == Activation::kGeluTanh ? reference_gelu_tanh<double> : reference_gelu_erf<double>;
    for (size_t i = 0; i < x.size(); ++i) {
      out.y.push_back(function(x[i]));
      out.d_x.push_back(d_y[i] * derivative(function, x[i]));
    }
    return out;
  }
  out.d_x.resize(x.size());
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      const double gate = x[2 * r * width + j], up = x[(2 * r + 1) * width + j], gradient = d_y[r * width + j];
      const double sigmoid = 1 / (1 + std::exp(-gate));
      out.y.push_back(reference_swiglu(gate, up));
      out.d_x[2 * r * width + j] = gradient * up * sigmoid * (1 + gate * (1 - sigmoid));
      out.d_x[(2 * r + 1) * width + j] = gradient * reference_swiglu(gate, 1.0);
    }
  }
  return out;
}

template <typename T>
void check_activation(Activation activation, int64_t num_rows, int64_t width) {
  TestDevice device;
  const int64_t count = num_rows * width, x_width = activation == Activation::kSwiglu ? 2 * width : width;
  const auto host_x = rounded<T>(random_floats(num_rows * x_width, 1, 2)),
             host_d_y = rounded<T>(random_floats(count, 2));
  const auto before_bias = random_floats(x_width, 3);
  const Expected expected = reference(activation, host_x, host_d_y, num_rows, width);
  const DeviceArray<T> x(converted<T>(host_x)), d_y(converted<T>(host_d_y)), y(count), d_x(num_rows * x_width);
  activation_forward(device.context, activation, x.data(), y.data(), num_rows, width);
  CHECK(is_close(y.floats(), expected.y, kTolerance<T>));

  activation_backward<T>(device.context, activation, x.data(), d_y.data(), d_x.data(), nullptr, num_rows, width);
  CHECK(is_close(d_x.floats(), expected.d_x, kTolerance<T>));

  std::vector<double> expected_bias = widen(before_bias);
  for (int64_t i = 0; i < num_rows * x_width; ++i) expected_bias[i % x_width] += expected.d_x[i];
  const DeviceArray<float> d_bias(before_bias), again(before_bias);
  const DeviceArray<T> d_x_again(num_rows * x_width);
  activation_backward(device.context, activation, x.data(), d_y.data(), d_x_again.data(), d_bias.data(), num_rows,
                      width);
  CHECK(same_bits(d_x_again.get(), d_x.get()));
  CHECK(is_close(d_bias.floats(), expected_bias, 2 * kFloatTolerance));

  if (activation == Activation::kSwiglu) return;
  // In place, and the same sums again.
  activation_backward(device.context, activation, x.data(), d_y.data(), d_y.data(), again.data(), num_rows, width);
  CHECK(same_bits(d_y.get(), d_x.get()));
  CHECK(same_bits(again.get(), d_bias.get()));
  activation_forward(device.context, activation, x.data(), x.data(), num_rows, width);
  CHECK(same_bits(x.get(), y.get()));
}

template <typename T>
void check_row_sums(int64_t num_rows, int64_t width, int64_t between) {
  TestDevice device;
  const int64_t stride = width + between;
  const auto host_x = rounded<T>(random_floats(num_rows * stride, 1)), before = random_floats(width, 2);
  std::vector<double> expected = widen(before);
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t j = 0; j < width; ++j) expected[j] += host_x[r * stride + j];
  }
  const DeviceArray<T> x(converted<T>(host_x));
  const DeviceArray<float> out(before), again(before);
  add_row_sums(device.context, x.data(), stride, num_rows, width, out.data());
  CHECK(is_close(out.floats(), expected, kFloatTolerance));
  add_row_sums(device.context, x.data(), stride, num_rows, width, again.data());
  CHECK(same_bits(out.get(), again.get()));

  const std::vector<float> sums = out.get();
  // Some columns left out, which keep what they had; more of them pending than one launch takes.
  for (const ColumnGap gap : {ColumnGap{width / 3, width / 2}, ColumnGap{0, width / 2 / 8 * 8}}) {
    const DeviceArray<float> parts(before);
    std::vector<double> expected_parts = expected;
    for (int64_t j = gap.begin; j < gap.end; ++j) expected_parts[j] = before[j];
    PendingSums pending;
    add_row_sums(device.context, x.data(), stride, num_rows, width, parts.data(), &pending, gap);
    constexpr int64_t kOthers = 20;
    std::vector<float> expected_others, before_others;
    for (int64_t i = 0; i < kOthers; ++i) {
      before_others.insert(before_others.end(), before.begin(), before.end());
      expected_others.insert(expected_others.end(), sums.begin(), sums.end());
    }
    const DeviceArray<float> others(before_others);
    for (int64_t i = 0; i < kOthers; ++i) {
      add_row_sums(device.context, x.data(), stride, num_rows, width, others.data() + i * width, &pending);
    }
    pending.finish(device.context);
    CHECK(is_close(parts.floats(), expected_parts, kFloatTolerance));
    CHECK(same_bits(others.get(), expected_others));
    device.context.arena.reset();
  }
}

template <typename T>
void check_dropout(int64_t count, int64_t offset, int64_t first) {
  constexpr uint64_t kSeed = 0x123456789ABCDEFu, kStream = (uint64_t{7} << 40) + 3;
  TestDevice device;
  const DeviceArray<uint64_t> seed(std::vector<uint64_t>{kSeed});
  for (const float probability : {0.0f, 0.1f, 0.5f, 0.9f}) {
    const auto host_x = rounded<T>(random_floats(count + offset, 1));
    std::vector<float> expected(host_x.begin() + offset, host_x.end());
    ThreadPool pool(1);
    Arena arena;
    limbeck::Context cpu{pool, arena};
    limbeck::dropout(cpu, expected.data(), count, probability, kSeed, kStream, static_cast<uint64_t>(first));
    const DeviceArray<T> x(converted<T>(host_x));
    dropout(device.context, x.data() + offset, count, probability, seed.data(), kStream, first);
    std::vector<float> out = x.floats();
    out.erase(out.begin(), out.begin() + offset);
    CHECK(same_bits(out, rounded<T>(expected)));
  }
}

std::vector<int32_t> some_rows(int64_t num_rows) {
  std::vector<int32_t> rows(num_rows);
  for (int64_t r = 0; r < num_rows; ++r) rows[r] = static_cast<int32_t>((num_rows - 1 - r) * 2 + 1);
  return rows;
}

template <typename T>
void check_copies(int64_t num_rows, int64_t width) {
  TestDevice device;
  Context& context = device.context;
  const std::vector<int32_t> host_rows = some_rows(num_rows);
  const int64_t table_rows = 2 * num_rows + 1;
  const auto host_table = rounded<T>(random_floats(table_rows * width, 1));
  const auto host_x = rounded<T>(random_floats(num_rows * width, 2));
  const DeviceArray<int32_t> rows(host_rows);
  const DeviceArray<T> table(converted<T>(host_table)), x(converted<T>(host_x)), gathered(num_rows * width);

  gather_rows(context, table.data(), rows.data(), gathered.data(), num_rows, width);
  std::vector<float> expected_gathered, expected_table = host_table;
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      const int64_t index = host_rows[r] * width + j;
      expected_gathered.push_back(host_table[index]);
      expected_table[index] = rounded<T>(host_x[r * width + j] + host_table[index]);
    }
  }
  CHECK(same_bits(gathered.floats(), expected_gathered));
  scatter_rows_add(context, x.data(), rows.data(), table.data(), num_rows, width);
  CHECK(same_bits(table.floats(), expected_table));

  for (const int64_t before : {0, 3, 16}) {
    const int64_t stride = width + before + 8;
    const auto host_wide = rounded<T>(random_floats(num_rows * stride, 3));
    std::vector<float> expected_columns, expected_wide = host_wide;
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t index = r * stride + before + j;
        expected_columns.push_back(host_wide[index]);
        expected_wide[index] = rounded<T>(host_x[r * width + j] + host_wide[index]);
      }
    }
    const DeviceArray<T> wide(converted<T>(host_wide)), columns(num_rows * width);
    copy_columns(context, wide.data(), stride, before, columns.data(), num_rows, width);
    CHECK(same_bits(columns.floats(), expected_columns));
    add_columns(context, x.data(), wide.data(), stride, before, num_rows, width);
    CHECK(same_bits(wide.floats(), expected_wide));
  }
}

template <typename From, typename To>
void check_convert(int64_t count, int64_t offset) {
  TestDevice device;
  auto host_x = rounded<From>(random_floats(count + offset, 1));
  const DeviceArray<From> x(converted<From>(host_x));
  const DeviceArray<To> y(count);
  convert(device.context, x.data() + offset, y.data(), count);
  host_x.erase(host_x.begin(), host_x.begin() + offset);
  CHECK(same_bits(y.floats(), rounded<To>(host_x)));
}

template <typename T>
void check_add(int64_t count) {
  TestDevice device;
  const auto host_x = rounded<T>(random_floats(count, 1)), host_y = rounded<T>(random_floats(count, 2));
  const DeviceArray<T> x(converted<T>(host_x)), y(converted<T>(host_y));
  add_in_place(device.context, x.data(), y.data(), count);
  std::vector<float> expected(host_x.size());
  for (size_t i = 0; i < host_x.size(); ++i) expected[i] = rounded<T>(host_x[i] + host_y[i]);
  CHECK(same_bits(y.floats(), expected));
}

}  // namespace

TEST("cuda activations: forward, backward and bias gradients equal the reference") {
  for (const Activation activation : {Activation::kGeluTanh, Activation::kGeluErf, Activation::kSwiglu}) {
    for_each_shape([&](int64_t num_rows, int64_t width) {
      check_activation<float>(activation, num_rows, width);
      check_activation<bf16>(activation, num_rows, width);
    });
    check_activation<float>(activation, 0, 64);
  }
}

TEST("cuda activations: far out they are 0, or x, and no NaN") {
  TestDevice device;
  const std::vector<float> host_x = {-1e4f, -200, -30, 30, 200, 1e4f, 0, -0.0f};
  for (const Activation activation : {Activation::kGeluTanh, Activation::kGeluErf}) {
    const DeviceArray<bf16> x(converted<bf16>(host_x)), d_y(converted<bf16>(std::vector<float>(8, 1))), y(8), d_x(8);
    activation_forward(device.context, activation, x.data(), y.data(), 1, 8);
    activation_backward<bf16>(device.context, activation, x.data(), d_y.data(), d_x.data(), nullptr, 1, 8);
    const auto out = y.floats(), gradient = d_x.floats();
    for (size_t i = 0; i < 3; ++i) CHECK(out[i] == 0 && gradient[i] == 0);
    for (size_t i = 3; i < 6; ++i) CHECK(out[i] == rounded<bf16>(host_x[i]) && gradient[i] == 1);
    for (size_t i = 6; i < 8; ++i) CHECK(out[i] == 0 && gradient[i] == 0.5f);
  }
}

TEST("cuda add_row_sums equals the sum of columns, the same bits each time") {
  for_each_shape([](int64_t num_rows, int64_t width) {
    for (const int64_t between : {0, 3, 8}) {
      check_row_sums<float>(num_rows, width, between);
      check_row_sums<bf16>(num_rows, width, between);
    }
  });
  // More rows than there are chunks, and a single block of columns.
  check_row_sums<bf16>(40000, 8, 0);
  check_row_sums<float>(40000, 5, 1);
  check_row_sums<float>(0, 5, 0);
}

TEST("cuda dropout keeps the elements that the CPU keeps") {
  for (const int64_t count : kCounts) {
    for (const int64_t offset : {0, 1}) {
      for (const int64_t first : {0, 3, 1000}) {
        check_dropout<float>(count, offset, first);
        check_dropout<bf16>(count, offset, first);
      }
    }
  }
}

TEST("cuda copies and sums of rows and columns touch those named and no others") {
  for (const int64_t num_rows : kRows) {
    for (const int64_t width : {1, 7, 8, 31, 64, 100}) {
      check_copies<float>(num_rows, width);
      check_copies<bf16>(num_rows, width);
    }
  }
  check_copies<bf16>(3, 768);
}

TEST("cuda convert and add_in_place round to the nearest") {
  for (const int64_t count : kCounts) {
    for (const int64_t offset : {0, 1}) {
      check_convert<float, float>(count, offset);
      check_convert<float, bf16>(count, offset);
      check_convert<bf16, float>(count, offset);
      check_convert<bf16, bf16>(count, offset);
    }
    check_add<float>(count);
    check_add<bf16>(count);
  }
}

}  // namespace limbeck::cuda
