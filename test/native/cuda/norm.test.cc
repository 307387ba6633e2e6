#include "cuda/norm.h"

#include <cstdint>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "ops/reference.h"

namespace limbeck::cuda {
namespace {

using namespace limbeck_test;

constexpr float kEps = 1e-5f;

struct Shape {
  int64_t num_rows, hidden_size;
};
// Each width of registers, with and without idle lanes, odd widths, and one that no registers hold.
const std::vector<Shape> kShapes = {{1, 1},    {3, 7},    {33, 8},   {257, 31}, {33, 64},   {257, 100}, {3, 128},
                                    {33, 192}, {3, 256},  {33, 384}, {67, 768}, {3, 1000},  {3, 1024},  {5, 1032},
                                    {3, 2048}, {2, 3072}, {2, 5120}, {1, 8200}, {1030, 24}, {0, 64}};

struct Gradients {
  std::vector<double> d_x, d_gamma, d_beta;
};

/// The formulas of ops/norm.h in double; those of the RMS norm have no mean. Added to what is given.
Gradients reference_backward(bool is_rms, const std::vector<double>& x, const std::vector<double>& gamma,
                             const std::vector<double>& d_y, int64_t num_rows, int64_t width, Gradients out) {
  const double count = static_cast<double>(width);
  for (int64_t r = 0; r < num_rows; ++r) {
    const double* row = &x[r * width];
    double mean = 0, squares = 0, gradients = 0, products = 0;
    for (int64_t j = 0; j < width && !is_rms; ++j) mean += row[j] / count;
    for (int64_t j = 0; j < width; ++j) squares += (row[j] - mean) * (row[j] - mean);
    const double rstd = 1 / std::sqrt(squares / count + static_cast<double>(kEps));
    for (int64_t j = 0; j < width; ++j) {
      const double normed = (row[j] - mean) * rstd, gradient = d_y[r * width + j];
      if (!is_rms) gradients += gradient * gamma[j] / count;
      products += gradient * gamma[j] * normed / count;
      out.d_gamma[j] += gradient * normed;
      out.d_beta[j] += gradient;
    }
    for (int64_t j = 0; j < width; ++j) {
      const double normed = (row[j] - mean) * rstd;
      out.d_x[r * width + j] += (d_y[r * width + j] * gamma[j] - gradients - normed * products) * rstd;
    }
  }
  return out;
}

/// Inputs as T holds them, and what comes of them in double.
template <typename T>
struct Norm {
  Norm(bool is_rms, Shape shape, float mean = 0.5f)
      : is_rms(is_rms),
        rows(shape.num_rows),
        width(shape.hidden_size),
        x(random_floats(rows * width, 1)),
        gamma(random_floats(width, 2)),
        beta(random_floats(width, 3)),
        d_y(rounded<T>(random_floats(rows * width, 4))),
        before_x(rounded<T>(random_floats(rows * width, 5))),
        before_gamma(random_floats(width, 6)),
        before_beta(random_floats(width, 7)),
        y(x.size()),
        mean(rows),
        rstd(rows) {
    for (float& value : x) value = rounded<T>(value + mean);
    for (float& value : gamma) value += 1;
    if (is_rms) {
      reference_rms_norm_forward<double>(widen(x).data(), widen(gamma).data(), y.data(), rstd.data(), rows, width,
                                         static_cast<double>(kEps));
    } else {
      reference_layer_norm_forward<double>(widen(x).data(), widen(gamma).data(), widen(beta).data(), y.data(),
                                           this->mean.data(), rstd.data(), rows, width, static_cast<double>(kEps));
    }
  }

  Gradients backward(bool accumulate) const {
    const std::vector<double> zeros(x.size());
    return reference_backward(is_rms, widen(x), widen(gamma), widen(d_y), rows, width,
                              {accumulate ? widen(before_x) : zeros, widen(before_gamma), widen(before_beta)});
  }

  void run_forward(Context& context, const T* device_x, T* device_y, float* device_mean, float* device_rstd) const {
    const DeviceArray<float> device_gamma(gamma), device_beta(beta);
    if (is_rms) {
      rms_norm_forward(context, device_x, device_gamma.data(), device_y, device_rstd, rows, width, kEps);
    } else {
      layer_norm_forward(context, device_x, device_gamma.data(), device_beta.data(), device_y, device_mean, device_rstd,
                         rows, width, kEps);
    }
    synchronize(context);
  }

  bool is_rms;
  int64_t rows, width;
  std::vector<float> x, gamma, beta, d_y, before_x, before_gamma, before_beta;
  std::vector<double> y, mean, rstd;
};

std::vector<float> narrow(const std::vector<double>& x) { return {x.begin(), x.end()}; }

template <typename T>
void check_forward(bool is_rms, Shape shape) {
  TestDevice device;
  const Norm<T> norm(is_rms, shape);
  const DeviceArray<T> x(converted<T>(norm.x)), y(norm.rows * norm.width);
  const DeviceArray<float> mean(norm.rows), rstd(norm.rows);
  norm.run_forward(device.context, x.data(), y.data(), mean.data(), rstd.data());
  CHECK(is_close(y.floats(), norm.y, kTolerance<T>));
  CHECK(is_close(rstd.floats(), norm.rstd, kFloatTolerance));
  if (!is_rms) CHECK(is_close(mean.floats(), norm.mean, kFloatTolerance));
  // In place, and without statistics.
  norm.run_forward(device.context, x.data(), x.data(), nullptr, nullptr);
  CHECK(same_bits(x.get(), y.get()));
}

template <typename T>
void check_backward(bool is_rms, Shape shape) {
  TestDevice device;
  const Norm<T> norm(is_rms, shape);
  const DeviceArray<T> x(converted<T>(norm.x)), d_y(converted<T>(norm.d_y));
  const DeviceArray<float> gamma(norm.gamma), mean(narrow(norm.mean)), rstd(narrow(norm.rstd));
  const auto run = [&](const T* gradient, T* d_x, float* d_gamma, float* d_beta, bool accumulate,
                       float* d_x_sums = nullptr, PendingSums* pending = nullptr) {
    if (is_rms) {
      rms_norm_backward(device.context, x.data(), gamma.data(), rstd.data(), gradient, d_x, d_gamma, norm.rows,
                        norm.width, accumulate, d_x_sums, pending);
    } else {
      layer_norm_backward(device.context, x.data(), gamma.data(), mean.data(), rstd.data(), gradient, d_x, d_gamma,
                          d_beta, norm.rows, norm.width, accumulate, d_x_sums, pending);
    }
  };
  const DeviceArray<T> added(converted<T>(norm.before_x));
  const DeviceArray<float> d_gamma(norm.before_gamma), d_beta(norm.before_beta);
  run(d_y.data(), added.data(), d_gamma.data(), d_beta.data(), true);
  const Gradients expected = norm.backward(true);
  // Rows of one element are all mean: their gradient is the difference of equal terms.
  if (norm.width > 1 || is_rms) CHECK(is_close(added.floats(), expected.d_x, kTolerance<T>));
  CHECK(is_close(d_gamma.floats(), expected.d_gamma, kFloatTolerance));
  if (!is_rms) CHECK(is_close(d_beta.floats(), expected.d_beta, kFloatTolerance));

  const DeviceArray<T> written(norm.rows * norm.width);
  const DeviceArray<float> again_gamma(norm.before_gamma), again_beta(norm.before_beta);
  run(d_y.data(), written.data(), again_gamma.data(), again_beta.data(), false);
  if (norm.width > 1) CHECK(is_close(written.floats(), norm.backward(false).d_x, kTolerance<T>));
  CHECK(same_bits(again_gamma.get(), d_gamma.get()));
  if (!is_rms) CHECK(same_bits(again_beta.get(), d_beta.get()));

  // With the sums of the new d_x, and together with others.
  const DeviceArray<T> summed(converted<T>(norm.before_x));
  const DeviceArray<float> summed_gamma(norm.before_gamma), summed_beta(norm.before_beta), d_x_sums(norm.before_beta);
  PendingSums pending;
  run(d_y.data(), summed.data(), summed_gamma.data(), summed_beta.data(), true, d_x_sums.data(), &pending);
  CHECK(summed_gamma.get() == norm.before_gamma);
  pending.finish(device.context);
  CHECK(same_bits(summed.get(), added.get()));
  CHECK(same_bits(summed_gamma.get(), d_gamma.get()));
  if (!is_rms) CHECK(same_bits(summed_beta.get(), d_beta.get()));
  std::vector<double> expected_sums = widen(norm.before_beta);
  for (int64_t i = 0; i < norm.rows * norm.width; ++i) expected_sums[i % norm.width] += expected.d_x[i];
  if (norm.width > 1) CHECK(is_close(d_x_sums.floats(), expected_sums, kTolerance<T>));
  // In the place of d_y.
  run(d_y.data(), d_y.data(), again_gamma.data(), again_beta.data(), false);
  CHECK(same_bits(d_y.get(), written.get()));
}

/// `rows` within rows of `stride`, 9 between them.
std::vector<float> spread(const std::vector<float>& rows, int64_t width, int64_t stride) {
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / width;
  std::vector<float> out(num_rows * stride, 9);
  for (int64_t r = 0; r < num_rows; ++r) std::copy_n(&rows[r * width], width, &out[r * stride]);
  return out;
}

std::vector<double> spread(const std::vector<double>& rows, int64_t width, int64_t stride) {
  const std::vector<float> narrow_rows(rows.begin(), rows.end());
  return widen(spread(narrow_rows, width, stride));
}

template <typename T>
void check_heads(int64_t head_dim, int64_t between) {
  constexpr int64_t kRows = 37, kHeads = 3;
  TestDevice device;
  const Norm<T> norm(true, {kRows * kHeads, head_dim});
  const int64_t width = kHeads * head_dim, x_stride = width + between, y_stride = width + 2 * between;
  const DeviceArray<T> x(converted<T>(spread(norm.x, width, x_stride)));
  const DeviceArray<T> y(converted<T>(std::vector<float>(kRows * y_stride, 9)));
  const DeviceArray<float> gamma(norm.gamma), rstd(kRows * kHeads);
  rms_norm_heads_forward(device.context, x.data(), x_stride, gamma.data(), y.data(), y_stride, rstd.data(), kRows,
                         kHeads, head_dim, kEps);
  CHECK(is_close(y.floats(), spread(norm.y, width, y_stride), kTolerance<T>));
  CHECK(is_close(rstd.floats(), norm.rstd, kFloatTolerance));

  const DeviceArray<T> d_y(converted<T>(spread(norm.d_y, width, y_stride)));
  const DeviceArray<float> d_gamma(norm.before_gamma);
  rms_norm_heads_backward(device.context, x.data(), x_stride, gamma.data(), rstd.data(), d_y.data(), y_stride,
                          d_gamma.data(), kRows, kHeads, head_dim);
  const Gradients expected = norm.backward(false);
  CHECK(is_close(d_y.floats(), spread(expected.d_x, width, y_stride), kTolerance<T>));
  CHECK(is_close(d_gamma.floats(), expected.d_gamma, kFloatTolerance));

  const DeviceArray<T> in_place(converted<T>(spread(norm.x, width, x_stride)));
  rms_norm_heads_forward<T>(device.context, in_place.data(), x_stride, gamma.data(), in_place.data(), x_stride, nullptr,
                            kRows, kHeads, head_dim, kEps);
  CHECK(is_close(in_place.floats(), spread(norm.y, width, x_stride), kTolerance<T>));
}

}  // namespace

TEST("cuda norms: the gradients of the reference are those of central differences") {
  for (const bool is_rms : {false, true}) {
    const Norm<float> norm(is_rms, {3, 7});
    const auto objective = [&](const std::vector<double>& x, const std::vector<double>& gamma) {
      std::vector<double> y(x.size()), mean(3), rstd(3);
      if (is_rms) {
        reference_rms_norm_forward<double>(x.data(), gamma.data(), y.data(), rstd.data(), 3, 7,
                                           static_cast<double>(kEps));
      } else {
        reference_layer_norm_forward<double>(x.data(), gamma.data(), widen(norm.beta).data(), y.data(), mean.data(),
                                             rstd.data(), 3, 7, static_cast<double>(kEps));
      }
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * norm.d_y[i];
      return sum;
    };
    const auto x = widen(norm.x), gamma = widen(norm.gamma);
    const Gradients out = reference_backward(is_rms, x, gamma, widen(norm.d_y), 3, 7,
                                             {std::vector<double>(21), std::vector<double>(7), std::vector<double>(7)});
    const auto d_x = central_differences(x, [&](auto& v) { return objective(v, gamma); });
    const auto d_gamma = central_differences(gamma, [&](auto& v) { return objective(x, v); });
    for (size_t i = 0; i < d_x.size(); ++i) CHECK(std::fabs(out.d_x[i] - d_x[i]) < 1e-7);
    for (size_t i = 0; i < d_gamma.size(); ++i) CHECK(std::fabs(out.d_gamma[i] - d_gamma[i]) < 1e-7);
  }
}

TEST("cuda norms: forward equals the reference") {
  for (const Shape shape : kShapes) {
    for (const bool is_rms : {false, true}) {
      check_forward<float>(is_rms, shape);
      check_forward<bf16>(is_rms, shape);
    }
  }
}

TEST("cuda norms: layer_norm_forward keeps its digits where the mean is far larger than the deviation") {
  for (const int64_t width : {256, 257}) {
    TestDevice device;
    const Norm<float> norm(false, {5, width}, 1000);
    const DeviceArray<float> x(norm.x), y(5 * width), mean(5), rstd(5);
    norm.run_forward(device.context, x.data(), y.data(), mean.data(), rstd.data());
    CHECK(is_close(y.floats(), norm.y, 2e-4));
  }
}

TEST("cuda norms: backward equals the reference, adds or writes, and has the same bits again") {
  for (const Shape shape : kShapes) {
    for (const bool is_rms : {false, true}) {
      check_backward<float>(is_rms, shape);
      check_backward<bf16>(is_rms, shape);
    }
  }
}

TEST("cuda norms: heads are rows apart, and what lies between rows stays") {
  for (const int64_t head_dim : {2, 6, 16, 20, 64, 128, 256}) {
    for (const int64_t between : {0, 5, 16}) {
      check_heads<float>(head_dim, between);
      check_heads<bf16>(head_dim, between);
    }
  }
}

TEST("cuda norms: pointers that no pack begins at are as good") {
  TestDevice device;
  const Norm<float> norm(false, {5, 64});
  std::vector<float> shifted(1, 0.0f);
  shifted.insert(shifted.end(), norm.x.begin(), norm.x.end());
  const DeviceArray<float> x(shifted), y(5 * 64), mean(5), rstd(5);
  norm.run_forward(device.context, x.data() + 1, y.data(), mean.data(), rstd.data());
  CHECK(is_close(y.floats(), norm.y, kFloatTolerance));
}

}  // namespace limbeck::cuda
