#include "cuda/gemm.h"

#include <cmath>

#include "compare.h"
#include "cuda/product_tiles.h"
#include "device_test.h"
#include "ops/reference.h"
#ifdef LIMBECK_CUDA_EMULATED
#include "cuda/emulator/cublas_lt.h"
#endif

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
  const double tolerance = sizeof(Out) == 2 ? 1.0 / 128 : 2e-6;
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

// [m, n] = a·b, of which a lies as [m, k] and b as [n, k] or, not transposed, as [k, n].
std::vector<double> product(const std::vector<float>& a, const std::vector<float>& b, int64_t m, int64_t n, int64_t k,
                            bool transpose_b) {
  std::vector<double> out(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) {
        out[i * n + j] += double{a[i * k + p]} * b[transpose_b ? j * k + p : p * n + j];
      }
    }
  }
  return out;
}

/// cuBLASLt's epilogue takes the tanh that the processor has, which is good to about 5e-4.
template <typename T>
constexpr double kGeluTolerance = sizeof(T) == 4 ? kTolerance<T> : 1e-2;

template <typename T>
std::vector<T> run_gelu_forward(TestDevice& device, int64_t rows, int64_t in, int64_t out, bool with_bias,
                                bool with_input, int poison) {
  const auto x = rounded<T>(random_floats(rows * in, kSeed)), weight = rounded<T>(random_floats(out * in, kSeed + 1)),
             bias = rounded<T>(random_floats(out, kSeed + 2));
  DeviceArray<T> device_x(converted<T>(x)), device_weight(converted<T>(weight)), device_bias(converted<T>(bias));
  DeviceArray<T> input(rows * out, poison), y(rows * out, poison);
  linear_gelu_forward<T>(device.context, device_x.data(), device_weight.data(),
                         with_bias ? device_bias.data() : nullptr, with_input ? input.data() : nullptr, y.data(), rows,
                         in, out);
  std::vector<double> expected_input = product(x, weight, rows, out, in, true), expected = expected_input;
  for (int64_t i = 0; i < rows * out; ++i) {
    if (with_bias) expected_input[i] += bias[i % out];
    expected[i] = limbeck::reference_gelu_tanh(expected_input[i]);
  }
  // Where GELU is small, it is the digits of its input that count; 1 is for sums that cancel.
  const std::vector<float> y_out = y.floats();
  double worst = 0;
  for (int64_t i = 0; i < rows * out; ++i) {
    const double size = 1 + std::fabs(expected[i]) + std::fabs(expected_input[i]);
    worst = std::fmax(worst, std::fabs(y_out[i] - expected[i]) / size);
    if (std::isnan(y_out[i])) worst = INFINITY;
  }
  CHECK(worst < kGeluTolerance<T>);
  if (with_input) CHECK(is_close(input.floats(), expected_input, kTolerance<T>));
  return y.get();
}

template <typename T>
std::vector<T> run_gelu_backward(TestDevice& device, int64_t rows, int64_t in, int64_t out, bool with_d_bias,
                                 int poison) {
  const auto d_y = rounded<T>(random_floats(rows * out, kSeed)),
             weight = rounded<T>(random_floats(out * in, kSeed + 1)),
             input = rounded<T>(random_floats(rows * in, kSeed + 2, 2)), before = random_floats(in, kSeed + 3);
  DeviceArray<T> device_d_y(converted<T>(d_y)), device_weight(converted<T>(weight)), device_input(converted<T>(input));
  DeviceArray<T> d_input(rows * in, poison);
  DeviceArray<float> d_bias(before);
  linear_gelu_backward<T>(device.context, device_d_y.data(), device_weight.data(), device_input.data(), d_input.data(),
                          with_d_bias ? d_bias.data() : nullptr, rows, in, out);
  std::vector<double> expected = product(d_y, weight, rows, in, out, false), expected_bias = widen(before);
  constexpr double kStep = 1e-5;
  for (int64_t i = 0; i < rows * in; ++i) {
    const double above = limbeck::reference_gelu_tanh(input[i] + kStep),
                 below = limbeck::reference_gelu_tanh(input[i] - kStep);
    expected[i] *= (above - below) / (2 * kStep);
    if (with_d_bias) expected_bias[i % in] += expected[i];
  }
  CHECK(is_close(d_input.floats(), expected, kTolerance<T>));
  CHECK(is_close(d_bias.get(), expected_bias, kTolerance<T>));
  return d_input.get();
}

template <typename T>
void check_linear_gelu() {
  constexpr int64_t kSizes[][3] = {{1, 1, 1},   {8, 16, 24}, {37, 24, 40}, {3, 7, 5},    {65, 17, 130},
                                   {5, 12, 16}, {5, 16, 12}, {2, 0, 8},    {64, 64, 64}, {9, 24, 264}};
  for (const auto& [rows, in, out] : kSizes) {
    TestDevice device;
    for (bool with_bias : {true, false}) {
      for (bool with_input : {true, false}) {
        const auto y = run_gelu_forward<T>(device, rows, in, out, with_bias, with_input, 0xFF);
        CHECK(same_bits(y, run_gelu_forward<T>(device, rows, in, out, with_bias, with_input, 0x11)));
      }
      if (in == 0) continue;
      const auto d_input = run_gelu_backward<T>(device, rows, in, out, with_bias, 0xFF);
      CHECK(same_bits(d_input, run_gelu_backward<T>(device, rows, in, out, with_bias, 0x11)));
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

TEST("gemm: aligned products are done by the library") {
  TestDevice device;
  for (int transposes = 0; transposes < 4; ++transposes) {
    const bool ta = transposes % 2 != 0, tb = transposes / 2 != 0;
    const GemmShape shape{64, 128, 32, ta, tb, ta ? 64 : 32, tb ? 32 : 128, 128};
    for (int extras = 0; extras < 3; ++extras) {
      run_case<float, float>(device, {shape, extras != 1, extras == 1, extras == 2}, 0xFF);
      run_case<bf16, bf16>(device, {shape, extras != 1, extras == 1, extras == 2}, 0xFF);
      run_case<bf16, float>(device, {shape, false, extras == 1, extras == 2}, 0xFF);
    }
  }
  // Without a bias, what is added is of one kind, in C or elsewhere.
  CHECK(device.context.blas.num_plans() == 4 * 8 && device.context.blas.num_unsupported() == 0);
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
                         kOut, true);
  DeviceArray<float> fresh(kOut * kIn);  // NaN
  linear_backward<float>(device.context, dx.data(), dw.data(), ddy.data(), nullptr, fresh.data(), kRows, kIn, kOut,
                         false);
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
  for (int64_t i = 0; i < kOut * kIn; ++i) dw_expected[i] -= before[i];
  CHECK(limbeck::largest_error(fresh.floats(), dw_expected, 4) < 1e-5);
}

TEST("gemm: linear layers with GELU, forward and backward: fp32") { check_linear_gelu<float>(); }
TEST("gemm: linear layers with GELU, forward and backward: bf16") { check_linear_gelu<bf16>(); }

TEST("gemm: GELU is part of aligned bf16 products") {
  TestDevice device;
  const CublasLt& blas = device.context.blas;
  for (bool with_bias : {true, false}) {
    for (bool with_input : {true, false}) run_gelu_forward<bf16>(device, 32, 64, 128, with_bias, with_input, 0xFF);
  }
  CHECK(blas.num_plans() == 4);  // one by one they would be two products: with a bias and without
  run_gelu_backward<bf16>(device, 32, 64, 264, true, 0xFF);
  CHECK(blas.num_plans() == 5 && blas.num_unsupported() == 0);
  // GELU of the sum itself, 1 + 2⁻⁹, which as bf16 is 1.
  constexpr int64_t kSize = 16;
  std::vector<float> x(kSize * kSize), weight(kSize * kSize, 1);
  for (int64_t i = 0; i < kSize; ++i) x[i * kSize] = 64, x[i * kSize + 1] = -63, x[i * kSize + 2] = 0x1p-9f;
  DeviceArray<bf16> device_x(converted<bf16>(x)), device_weight(converted<bf16>(weight)), input(kSize * kSize),
      y(kSize * kSize);
  linear_gelu_forward<bf16>(device.context, device_x.data(), device_weight.data(), nullptr, input.data(), y.data(),
                            kSize, kSize, kSize);
  CHECK(input.floats() == std::vector<float>(kSize * kSize, 1));
  CHECK(is_close(y.floats(), std::vector<double>(kSize * kSize, limbeck::reference_gelu_tanh(1 + 0x1p-9)),
                 kTolerance<bf16>));
}

TEST("gemm: where the library refuses GELU, the product is followed by it") {
  TestDevice device;
  run_gelu_forward<bf16>(device, 9, 8, 12, true, true, 0xFF);
  CHECK(device.context.blas.num_unsupported() >= 1);
  run_gelu_backward<bf16>(device, 9, 12, 264, true, 0xFF);
  CHECK(device.context.blas.num_unsupported() >= 2);
}

TEST("gemm: a dry context computes nothing of a layer with GELU, and counts what both of its ways take") {
  TestDevice device;
  constexpr int64_t kOut = 264;
  const auto peak_bytes = [&](int64_t in, bool is_dry, bf16* data, float* d_bias) {
    DeviceArena arena(is_dry);
    Context context{device.context.stream, arena, device.context.blas, device.context.num_multiprocessors, is_dry};
    linear_gelu_forward<bf16>(context, data, data, nullptr, nullptr, data + 64 * in, 64, 8, in);
    linear_gelu_backward<bf16>(context, data, data, data, data + 64 * kOut, d_bias, 64, in, kOut);
    return arena.peak_bytes();
  };
  for (int64_t in : {64, 63}) {  // 63: not by the library
    DeviceArray<bf16> data(64 * kOut + kOut * in, 0x11);
    DeviceArray<float> d_bias(in);
    const size_t dry_bytes = peak_bytes(in, true, nullptr, d_bias.data());
    CHECK(device.context.blas.num_plans() == 0 || in != 64);
    CHECK(dry_bytes > 0 && peak_bytes(in, false, data.data(), d_bias.data()) <= dry_bytes);
    cudaDeviceSynchronize();
  }
}

TEST("gemm: with tuning, GELU and accumulated gradients are what they are without") {
  TestDevice device;
  device.context.blas.set_tuning(true, 0);
  constexpr int64_t kRows = 40, kIn = 24, kOut = 48;
  run_gelu_forward<bf16>(device, kRows, kIn, kOut, true, true, 0xFF);
  run_gelu_forward<bf16>(device, kRows, kIn, kOut, true, false, 0xFF);
  run_gelu_backward<bf16>(device, kRows, kIn, 264, true, 0xFF);
  const auto x = rounded<bf16>(random_floats(kRows * kIn, 1)), d_y = rounded<bf16>(random_floats(kRows * kOut, 2)),
             before = random_floats(kOut * kIn, 3);
  DeviceArray<bf16> device_x(converted<bf16>(x)), device_d_y(converted<bf16>(d_y));
  DeviceArray<float> d_weight(before);
  std::vector<double> expected = widen(before);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t o = 0; o < kOut; ++o) {
      for (int64_t i = 0; i < kIn; ++i) expected[o * kIn + i] += double{d_y[r * kOut + o]} * x[r * kIn + i];
    }
  }
  linear_backward<bf16>(device.context, device_x.data(), nullptr, device_d_y.data(), nullptr, d_weight.data(), kRows,
                        kIn, kOut, true);
  CHECK(is_close(d_weight.get(), expected, kFloatTolerance));
}

TEST("gemm: the choice of an algorithm is made once a kind, with tuning too, and accumulates once") {
  TestDevice device;
  CublasLt& blas = device.context.blas;
  blas.set_tuning(true, 0);
  constexpr int64_t kM = 16, kN = 16, kK = 8;
  DeviceArray<float> a(random_floats(kM * kK, 1)), b(random_floats(kN * kK, 2)), c(random_floats(kM * kN, 3));
  const std::vector<float> before = c.get();
  const GemmShape shape{kM, kN, kK, false, true, kK, kK, kN};
  DeviceArray<float> elsewhere(kM * kN);
  gemm<float, float>(device.context, shape, a.data(), b.data(), nullptr, c.data(), elsewhere.data());
  for (int i = 0; i < 2; ++i)
    gemm<float, float>(device.context, shape, a.data(), b.data(), nullptr, c.data(), c.data());
  CHECK(blas.num_plans() == 1);  // in place or not, so that the bits are the same
  std::vector<double> expected(before.begin(), before.end());
  const std::vector<float> host_a = a.get(), host_b = b.get();
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      for (int64_t p = 0; p < kK; ++p) expected[i * kN + j] += 2.0 * host_a[i * kK + p] * host_b[j * kK + p];
    }
  }
  CHECK(limbeck::largest_error(c.get(), expected, 1) < 1e-5);
}

#ifdef LIMBECK_CUDA_EMULATED

namespace {

enum class Addend { kNone, kStream, kResult };

/// The algorithm of C [m, n] = A·B over k, put into a graph and never run.
emulator::LastAlgorithm algorithm_of(int64_t m, int64_t n, int64_t k, Addend addend = Addend::kNone,
                                     Gelu gelu = Gelu::kNone, int64_t elements_off = 0) {
  TestDevice device;
  DeviceArray<bf16> a(64), b(64), other(64);
  DeviceArray<float> c(64);
  Product product{
      m,        n,       k,       false,   true, k, k, n, lt::kBFloat16, lt::kBFloat16, a.data() + elements_off,
      b.data(), nullptr, nullptr, c.data()};
  if (addend == Addend::kStream) product.residual = other.data();
  if (addend == Addend::kResult) product.out = lt::kFloat32, product.residual = product.c;
  product.gelu = gelu;
  if (gelu != Gelu::kNone) product.gelu_input = other.data();
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(device.context.stream, cudaStreamCaptureModeThreadLocal), "a capture");
  CHECK(device.context.blas.multiply(device.context.stream, product));
  check_cuda(cudaStreamEndCapture(device.context.stream, &graph), "a capture");
  cudaGraphDestroy(graph);
  return emulator::last_algorithm_of_cublas_lt();
}

}  // namespace

TEST("gemm: on Hopper, large products take other tiles than the library's first, where it has them") {
  CHECK(algorithm_of(16384, 2304, 768).tile == lt::kTile128x160);
  CHECK(algorithm_of(16384, 2304, 768).cluster == lt::kCluster2x1);
  CHECK(algorithm_of(2048, 50304, 64).cluster == lt::kCluster1x2);
  CHECK(algorithm_of(16384, 3072, 768, Addend::kNone, Gelu::kForward).tile == lt::kTile96x128);
  // GELU' has one tile, which two blocks share.
  CHECK(algorithm_of(16384, 3072, 768, Addend::kNone, Gelu::kBackward).cluster == lt::kCluster1x2);
  // Small; not aligned for it; refused, at once or when it is to run; another device.
  CHECK(algorithm_of(64, 768, 768).tile == lt::kTile256x128);
  CHECK(algorithm_of(16384, 2304, 768, Addend::kNone, Gelu::kNone, 4).tile == lt::kTile256x128);
  emulator::machine().has_preferred_algorithms = false;
  CHECK(algorithm_of(16384, 2304, 768).tile == lt::kTile256x128);
  emulator::machine().reset();
  emulator::machine().runs_preferred_algorithms = false;
  CHECK(algorithm_of(16384, 2304, 768).tile == lt::kTile256x128);
  emulator::machine().reset();
  emulator::machine().major = 8;
  CHECK(algorithm_of(16384, 2304, 768).tile == lt::kTile256x128);
  CHECK(algorithm_of(16384, 3072, 768, Addend::kNone, Gelu::kBackward).cluster == lt::kCluster4x2);
  emulator::machine().reset();
}

#endif

TEST("gemm: the tiles that are preferred are those that were measured to be faster") {
  const auto tile = [](int64_t m, int64_t n, int64_t k, lt::DataType out = lt::kBFloat16, bool has_stream = false,
                       Gelu gelu = Gelu::kNone, bool keeps_input = false) {
    Product product{m, n, k, false, true, k, k, n, lt::kBFloat16, out, nullptr, nullptr, nullptr, nullptr, &product};
    if (out == lt::kFloat32) product.residual = product.c;
    if (has_stream) product.residual = &gelu;
    product.gelu = gelu;
    if (keeps_input) product.gelu_input = &gelu;
    const ProductTile* preferred = preferred_tile(product, 132);
    return preferred == nullptr ? 0 : static_cast<int>(preferred->id);
  };
  constexpr int kNone = 0;
  // The last round of tiles decides between the two.
  CHECK(tile(65536, 768, 768) == lt::kTile128x160 && tile(32768, 768, 768) == lt::kTile128x128);
  CHECK(tile(32768, 2304, 768) == lt::kTile128x160 && tile(16384, 2304, 768) == lt::kTile128x128);
  CHECK(tile(4096, 2304, 768) == lt::kTile128x160 && tile(4096, 768, 768) == kNone);
  CHECK(tile(16384, 50304, 768) == lt::kTile176x128 && tile(16384, 50304, 256) == lt::kTile176x128);
  CHECK(tile(65536, 3072, 768, lt::kBFloat16, false, Gelu::kForward) == lt::kTile128x160);
  CHECK(tile(65536, 3072, 768, lt::kBFloat16, false, Gelu::kForward, true) == lt::kTile96x128);
  CHECK(tile(65536, 3072, 768, lt::kBFloat16, false, Gelu::kBackward, true) == kNone);
  CHECK(tile(65536, 768, 768, lt::kBFloat16, true) == lt::kTile128x160);
  CHECK(tile(65536, 768, 3072, lt::kBFloat16, true) == kNone);
  CHECK(tile(65536, 768, 768, lt::kBFloat16, true) > 0 && tile(32768, 768, 768, lt::kBFloat16, true) == kNone);
  // Long sums.
  CHECK(tile(65536, 768, 3072) > 0 && tile(21888, 768, 50304) == kNone);
  CHECK(tile(2304, 768, 65536, lt::kFloat32) == kNone && tile(50304, 768, 16384, lt::kFloat32) == kNone);
  CHECK(tile(256, 256, 256) == kNone);
  // One block of a cluster would have nothing to do.
  CHECK(tile(25600, 128, 1024) == kNone && tile(25600, 384, 128) == kNone && tile(25600, 256, 128) > 0);
}
