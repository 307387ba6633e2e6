#include "cuda/gemm.h"

#include <cmath>

#include "device_test.h"
#include "ops/reference.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

constexpr uint64_t kSeed = 41;

std::vector<double> as_doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// rows × columns numbers in rows of `stride`, between them NaN.
template <typename T>
std::vector<float> padded_rows(int64_t num_rows, int64_t num_columns, int64_t stride, uint64_t seed) {
  std::vector<float> out(num_rows * stride, NAN);
  const std::vector<float> values = rounded<T>(random_floats(num_rows * num_columns, seed));
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t j = 0; j < num_columns; ++j) out[i * stride + j] = values[i * num_columns + j];
  }
  return out;
}

struct Case {
  GemmShape shape;
  bool bias, residual, accumulate;
};

template <typename T, typename Out>
std::vector<Out> run_case(TestDevice& device, const Case& test, int poison) {
  const GemmShape& s = test.shape;
  const int64_t a_rows = s.transpose_a ? s.k : s.m, a_columns = s.transpose_a ? s.m : s.k;
  const int64_t b_rows = s.transpose_b ? s.n : s.k, b_columns = s.transpose_b ? s.k : s.n;
  const std::vector<float> a = padded_rows<T>(a_rows, a_columns, s.lda, kSeed);
  const std::vector<float> b = padded_rows<T>(b_rows, b_columns, s.ldb, kSeed + 1);
  const std::vector<float> bias = rounded<Out>(random_floats(s.n, kSeed + 2));
  const std::vector<float> residual = padded_rows<Out>(s.m, s.n, s.ldc, kSeed + 3);
  DeviceArray<T> device_a(converted<T>(a)), device_b(converted<T>(b));
  DeviceArray<Out> device_bias(converted<Out>(bias)), device_residual(converted<Out>(residual));
  DeviceArray<Out> c(s.m * s.ldc, poison);
  if (test.accumulate) c.set(converted<Out>(residual));
  gemm<T, Out>(device.context, s, device_a.data(), device_b.data(), test.bias ? device_bias.data() : nullptr,
               test.accumulate ? c.data()
               : test.residual ? device_residual.data()
                               : nullptr,
               c.data());

  const std::vector<double> wide_a = as_doubles(a), wide_b = as_doubles(b), wide_bias = as_doubles(bias);
  std::vector<double> expected(s.m * s.ldc);
  limbeck::reference_gemm<double>(s.m, s.n, s.k, {wide_a.data(), s.transpose_a ? 1 : s.lda, s.transpose_a ? s.lda : 1},
                                  {wide_b.data(), s.transpose_b ? 1 : s.ldb, s.transpose_b ? s.ldb : 1},
                                  test.bias ? wide_bias.data() : nullptr, expected.data(), s.ldc, false);
  const std::vector<Out> out = c.get();
  const double tolerance = sizeof(Out) == 2 ? 1.0 / 256 : 2e-6;
  double worst = 0;
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.ldc; ++j) {
      const int64_t at = i * s.ldc + j;
      const float value = to_float(out[at]);
      if (j >= s.n) {  // between the rows nothing is written
        CHECK(test.accumulate ? std::isnan(value) : std::memcmp(&out[at], &out[s.n], sizeof(Out)) == 0);
        continue;
      }
      double sum = expected[at];
      if (test.residual || test.accumulate) sum += residual[at];
      worst = std::fmax(worst, std::fabs(value - sum) / (std::fabs(sum) + std::sqrt(1.0 + s.k)));
      if (std::isnan(value)) worst = INFINITY;
    }
  }
  CHECK(worst < tolerance);
  return out;
}

template <typename T, typename Out>
void check_gemm(bool with_bias) {
  TestDevice device;
  constexpr int64_t kSizes[][3] = {{1, 1, 1},     {8, 16, 24}, {3, 7, 5}, {64, 64, 64},
                                   {65, 130, 17}, {1, 40, 33}, {70, 8, 1}};
  for (const auto& [m, n, k] : kSizes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      for (int64_t pad : {0, 3, 8}) {
        const bool ta = transposes % 2 != 0, tb = transposes / 2 != 0;
        const GemmShape shape{m, n, k, ta, tb, (ta ? m : k) + pad, (tb ? k : n) + pad, n + pad};
        for (int extras = 0; extras < 3; ++extras) {
          const Case test{shape, with_bias && extras != 1, extras == 1, extras == 2};
          const std::vector<Out> out = run_case<T, Out>(device, test, 0xFF);
          if (pad == 0) CHECK(same_bits(out, run_case<T, Out>(device, test, 0x11)));
        }
      }
    }
  }
}

}  // namespace

TEST("gemm: fp32") { check_gemm<float, float>(true); }
TEST("gemm: bf16") { check_gemm<bf16, bf16>(true); }
TEST("gemm: bf16 to fp32") { check_gemm<bf16, float>(false); }

TEST("gemm: no k gives the bias and the residual, no rows or columns nothing") {
  TestDevice device;
  DeviceArray<float> bias(std::vector<float>{1, 2, 3}), residual(std::vector<float>{10, 20, 30, 40, 50, 60}), c(6);
  DeviceArray<float> a(1), b(1);
  gemm<float, float>(device.context, {2, 3, 0, false, false, 1, 3, 3}, a.data(), b.data(), bias.data(), residual.data(),
                     c.data());
  CHECK(c.get() == std::vector<float>{11, 22, 33, 41, 52, 63});
  gemm<float, float>(device.context, {2, 3, 0, false, true, 1, 1, 3}, a.data(), b.data(), nullptr, nullptr, c.data());
  CHECK(c.get() == std::vector<float>(6));
  gemm<float, float>(device.context, {0, 3, 4, false, true, 4, 4, 3}, a.data(), b.data(), nullptr, nullptr, c.data());
  gemm<float, float>(device.context, {3, 0, 4, false, true, 4, 4, 0}, a.data(), b.data(), nullptr, nullptr, c.data());
  CHECK(c.get() == std::vector<float>(6));
}

TEST("gemm: fp32 operands keep their 24 bits") {
  TestDevice device;
  DeviceArray<float> a(std::vector<float>(16, 1 + 0x1p-20f)), b(std::vector<float>(16, 1 + 0x1p-19f)), c(16);
  gemm<float, float>(device.context, {4, 4, 4, false, true, 4, 4, 4}, a.data(), b.data(), nullptr, nullptr, c.data());
  const std::vector<float> out = c.get();
  const double expected = 4 * (1 + 0x1p-20) * (1 + 0x1p-19);
  for (float value : out) CHECK(std::fabs(value - expected) < 4 * 0x1p-22);
}

TEST("gemm: a dry context computes nothing") {
  TestDevice device;
  Context dry = device.context;
  dry.is_dry = true;
  gemm<float, float>(dry, {2, 3, 4, false, true, 4, 4, 3}, nullptr, nullptr, nullptr, nullptr, nullptr);
  CHECK(device.context.blas.num_plans() == 0);
}

TEST("gemm: linear layers forward and backward") {
  TestDevice device;
  constexpr int64_t kRows = 37, kIn = 24, kOut = 40;
  const auto x = random_floats(kRows * kIn, 1), weight = random_floats(kOut * kIn, 2),
             d_y = random_floats(kRows * kOut, 3);
  const auto bias = random_floats(kOut, 4), before = random_floats(kOut * kIn, 5);
  DeviceArray<float> dx(x), dw(weight), ddy(d_y), db(bias), y(kRows * kOut), d_x(kRows * kIn), d_weight(before);
  linear_forward<float>(device.context, dx.data(), dw.data(), db.data(), nullptr, y.data(), kRows, kIn, kOut);
  linear_backward<float>(device.context, dx.data(), dw.data(), ddy.data(), d_x.data(), d_weight.data(), kRows, kIn,
                         kOut);
  std::vector<double> y_expected(kRows * kOut), dx_expected(kRows * kIn), dw_expected(before.begin(), before.end());
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t o = 0; o < kOut; ++o) {
      y_expected[r * kOut + o] = bias[o];
      for (int64_t i = 0; i < kIn; ++i) {
        y_expected[r * kOut + o] += double{x[r * kIn + i]} * weight[o * kIn + i];
        dx_expected[r * kIn + i] += double{d_y[r * kOut + o]} * weight[o * kIn + i];
        dw_expected[o * kIn + i] += double{d_y[r * kOut + o]} * x[r * kIn + i];
      }
    }
  }
  CHECK(limbeck::largest_error(y.floats(), y_expected, 4) < 1e-5);
  CHECK(limbeck::largest_error(d_x.floats(), dx_expected, 4) < 1e-5);
  CHECK(limbeck::largest_error(d_weight.floats(), dw_expected, 4) < 1e-5);
}

TEST("gemm: the choice of an algorithm is made once a kind, with tuning too, and accumulates once") {
  TestDevice device;
  CublasLt& blas = device.context.blas;
  blas.set_tuning(true, 0);
  constexpr int64_t kM = 16, kN = 16, kK = 8;
  DeviceArray<float> a(random_floats(kM * kK, 1)), b(random_floats(kN * kK, 2)), c(random_floats(kM * kN, 3));
  const std::vector<float> before = c.get();
  const GemmShape shape{kM, kN, kK, false, true, kK, kK, kN};
  for (int i = 0; i < 2; ++i) {
    gemm<float, float>(device.context, shape, a.data(), b.data(), nullptr, c.data(), c.data());
    CHECK(blas.num_plans() == 1);
  }
  std::vector<double> expected(before.begin(), before.end());
  const std::vector<float> host_a = a.get(), host_b = b.get();
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      for (int64_t p = 0; p < kK; ++p) expected[i * kN + j] += 2.0 * host_a[i * kK + p] * host_b[j * kK + p];
    }
  }
  CHECK(limbeck::largest_error(c.get(), expected, 1) < 1e-5);
}
