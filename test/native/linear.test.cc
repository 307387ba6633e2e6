#include "ops/linear.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/reference.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kUntouched = 7.0f;
// Of an fp32 sum of k products of normals, over √k.
constexpr double kTolerance = 3e-6;

std::vector<float> normals(int64_t count, uint64_t stream) {
  const Philox random{3, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  return out;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// A [rows, columns] matrix, row-major or transposed, with NaN in the gap between its lines.
struct Matrix {
  Matrix(int64_t rows, int64_t columns, bool is_transposed, uint64_t stream) {
    constexpr int64_t kGap = 3;
    const int64_t lines = is_transposed ? columns : rows, length = is_transposed ? rows : columns;
    const int64_t stride = length + kGap;
    data = normals(lines * stride, stream);
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t i = length; i < stride; ++i) data[line * stride + i] = kNaN;
    }
    wide = widen(data);
    row_stride = is_transposed ? 1 : stride;
    column_stride = is_transposed ? stride : 1;
  }
  MatrixView view() const { return {data.data(), row_stride, column_stride}; }
  ReferenceMatrix<double> reference() const { return {wide.data(), row_stride, column_stride}; }

  std::vector<float> data;
  std::vector<double> wide;
  int64_t row_stride, column_stride;
};

enum class Start { kWritten, kWrittenWithBias, kAccumulated };

/// One product: C [m, n] with `gap` columns behind it that nobody may touch.
struct Product {
  Product(int64_t m, int64_t n, int64_t k, bool a_transposed, bool b_transposed, Start start, int64_t gap)
      : m(m),
        n(n),
        k(k),
        ldc(n + gap),
        accumulate(start == Start::kAccumulated),
        a(m, k, a_transposed, 1),
        b(k, n, b_transposed, 2),
        initial(normals(m * ldc, 4)) {
    if (start == Start::kWrittenWithBias) bias = normals(n, 3);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < ldc; ++j) {
        if (j >= n) {
          initial[i * ldc + j] = kUntouched;
        } else if (!accumulate) {
          initial[i * ldc + j] = kNaN;
        }
      }
    }
    expected = widen(initial);
    const std::vector<double> wide_bias = widen(bias);
    reference_gemm<double>(m, n, k, a.reference(), b.reference(), bias.empty() ? nullptr : wide_bias.data(),
                           expected.data(), ldc, accumulate);
  }

  std::vector<float> run(int num_threads) const {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    std::vector<float> c = initial;
    gemm(context, m, n, k, a.view(), b.view(), bias.empty() ? nullptr : bias.data(), c.data(), ldc, accumulate);
    return c;
  }

  bool agrees(int num_threads) const {
    return largest_error(run(num_threads), expected, std::sqrt(static_cast<double>(k + 1))) < kTolerance;
  }

  int64_t m, n, k, ldc;
  bool accumulate;
  Matrix a, b;
  std::vector<float> bias, initial;
  std::vector<double> expected;
};

struct Shape {
  int64_t m, n, k;
};

// Around the register tiles (6 × 8, 6 × 16, 14 × 32), the blocks of 84 rows and 512 deep, and beyond one packed B.
const std::vector<Shape> kLargeShapes = {
    {6, 16, 8},     {14, 32, 256},  {15, 33, 257},   {84, 48, 17},   {85, 65, 100},   {100, 257, 64}, {257, 100, 257},
    {257, 17, 513}, {64, 5, 1000},  {1000, 1, 17},   {7, 1000, 257}, {1, 1000, 1000}, {3, 600, 1000}, {2, 513, 100},
    {1000, 3, 5},   {4, 4200, 300}, {17, 1000, 100}, {50, 40, 1025}, {30, 20, 9000},
};

}  // namespace

TEST("gemm equals the reference for small sizes in every layout, with and without bias, accumulation and ldc > n") {
  for (const int64_t m : {1, 2, 3, 4, 5, 17}) {
    for (const int64_t n : {1, 3, 5, 7, 17, 64, 100}) {
      for (const int64_t k : {0, 1, 3, 7, 17, 64}) {
        for (const int layout : {0, 1, 2, 3}) {
          for (const Start start : {Start::kWritten, Start::kWrittenWithBias, Start::kAccumulated}) {
            const Product product(m, n, k, (layout & 1) != 0, (layout & 2) != 0, start, (m + n + k) % 2 * 5);
            for_each_isa([&] { CHECK(product.agrees(1)); });
          }
        }
      }
    }
  }
}

TEST("gemm equals the reference for sizes around its tiles and blocks") {
  for (const Shape& shape : kLargeShapes) {
    for (const int layout : {0, 1, 2, 3}) {
      const Start start = static_cast<Start>(layout % 3);
      const Product product(shape.m, shape.n, shape.k, (layout & 1) != 0, (layout & 2) != 0, start, layout);
      for_each_isa([&] { CHECK(product.agrees(2)); });
    }
  }
}

TEST("gemm gives the same bits on 1, 2 and 3 threads") {
  for (const Shape& shape : kLargeShapes) {
    const Product product(shape.m, shape.n, shape.k, false, true, Start::kAccumulated, 0);
    for_each_isa([&] {
      const std::vector<float> alone = product.run(1);
      CHECK(product.run(2) == alone);
      CHECK(product.run(3) == alone);
    });
  }
}

TEST("gemm in bfloat16 equals the reference of rounded operands, in every layout and for odd depths") {
  const auto round = [](std::vector<float> x) {
    for (float& value : x) {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
      std::memcpy(&value, &bits, sizeof bits);
    }
    return x;
  };
  for (const Shape& shape : {Shape{4, 1, 1}, Shape{6, 16, 8}, Shape{15, 33, 257}, Shape{17, 100, 64},
                             Shape{50, 40, 1025}, Shape{100, 257, 65}, Shape{30, 20, 9000}}) {
    for (const int layout : {0, 1, 2, 3}) {
      const bool a_transposed = (layout & 1) != 0, b_transposed = (layout & 2) != 0;
      const auto a = normals(shape.m * shape.k, 1), b = normals(shape.k * shape.n, 2), bias = normals(shape.n, 3);
      const auto wide_a = widen(round(a)), wide_b = widen(round(b)), wide_bias = widen(bias);
      const int64_t a_row = a_transposed ? 1 : shape.k, a_column = a_transposed ? shape.m : 1;
      const int64_t b_row = b_transposed ? 1 : shape.n, b_column = b_transposed ? shape.k : 1;
      std::vector<double> expected(static_cast<size_t>(shape.m * shape.n));
      reference_gemm<double>(shape.m, shape.n, shape.k, {wide_a.data(), a_row, a_column},
                             {wide_b.data(), b_row, b_column}, wide_bias.data(), expected.data(), shape.n, false);
      for_each_isa([&] {
        std::vector<float> first;
        for (const int num_threads : {1, 2}) {
          ThreadPool pool(num_threads);
          Arena arena;
          Context context{pool, arena, Precision::kBFloat16};
          std::vector<float> c(expected.size(), kNaN);
          gemm(context, shape.m, shape.n, shape.k, {a.data(), a_row, a_column}, {b.data(), b_row, b_column},
               bias.data(), c.data(), shape.n, false);
          CHECK(largest_error(c, expected, std::sqrt(static_cast<double>(shape.k + 1))) < kTolerance);
          if (num_threads == 1) first = c;
          CHECK(c == first);
        }
      });
    }
  }
}

TEST("a row of a packed product has the same bits among any others") {
  constexpr int64_t kRows = 31;
  for_each_isa([] {
    for (const int64_t n : {2, 33, 66, 128, 200, 640}) {
      for (const int64_t k : {1, 70, 1600}) {
        const std::vector<float> a = normals(kRows * k, 1), b = normals(n * k, 2), bias = normals(n, 3);
        ThreadPool pool(1);
        Arena arena;
        Context context{pool, arena};
        const PackedMatrix packed(context, {b.data(), 1, k}, k, n);
        std::vector<float> whole(static_cast<size_t>(kRows * n), kNaN);
        gemm_packed(context, kRows, 0, n, {a.data(), k, 1}, packed, bias.data(), whole.data(), n);
        for (const int64_t rows : {1, 2, 3, 5, 14, 20}) {
          const int64_t first = kRows - rows;
          std::vector<float> part(static_cast<size_t>(rows * n), kNaN);
          gemm_packed(context, rows, 0, n, {a.data() + first * k, k, 1}, packed, bias.data(), part.data(), n);
          CHECK(std::equal(part.begin(), part.end(), whole.begin() + first * n));
        }
      }
    }
  });
}

TEST("an epilogue gives the bits of the same work after the product, packed or not, on 1 and 2 threads") {
  struct Case {
    Activation activation;
    bool has_residual, in_place;
  };
  const auto run_all = [](int64_t m, int64_t n, int64_t k, const std::vector<Case>& cases) {
    const std::vector<float> a = normals(m * k, 1), b = normals(n * k, 2), bias = normals(n, 3);
    const std::vector<float> residual = normals(m * n, 4);
    const MatrixView left{a.data(), k, 1};
    for (const int num_threads : {1, 2}) {
      ThreadPool pool(num_threads);
      Arena arena;
      for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
        Context context{pool, arena, precision};
        const PackedMatrix packed(context, {b.data(), 1, k}, k, n);
        std::vector<float> product(static_cast<size_t>(m * n));
        gemm(context, m, n, k, left, {b.data(), 1, k}, bias.data(), product.data(), n, false);
        for (const auto& [activation, has_residual, in_place] : cases) {
          const bool is_gated = activation == Activation::kSwiglu;
          const int64_t width = is_gated ? n / 2 : n;
          std::vector<float> c = product, y(static_cast<size_t>(m * width));
          if (has_residual) add_in_place(context, residual.data(), c.data(), m * n);
          if (activation == Activation::kGeluTanh) gelu_tanh_forward(context, c.data(), y.data(), m * n);
          if (activation == Activation::kGeluErf) gelu_erf_forward(context, c.data(), y.data(), m * n);
          if (is_gated) swiglu_forward(context, c.data(), y.data(), m, width);
          for (const bool is_packed : {false, true}) {
            if (is_packed && m < 4) continue;
            std::vector<float> fused_c(c.size(), kNaN), fused_y(y.size(), kNaN);
            const Epilogue epilogue{has_residual ? residual.data() : nullptr,
                                    in_place ? fused_c.data() : fused_y.data(), activation};
            if (is_packed) {
              gemm_packed(context, m, 0, n, left, packed, bias.data(), fused_c.data(), n, epilogue);
            } else {
              gemm(context, m, n, k, left, {b.data(), 1, k}, bias.data(), fused_c.data(), n, false, epilogue);
            }
            if (in_place) {
              CHECK(fused_c == y);
            } else {
              CHECK(fused_c == c);
              CHECK(fused_y == y);
            }
          }
        }
      }
    }
  };
  const Case gated{Activation::kSwiglu, false, false};
  for_each_isa([&] {
    for (const int64_t m : {1, 3, 5, 170}) {
      for (const int64_t n : {2, 66, 128, 640}) {
        for (const int64_t k : {1, 70, 1600}) {
          run_all(m, n, k, {gated, {Activation::kGeluTanh, true, false}, {Activation::kGeluErf, false, true}});
        }
      }
    }
    // Wider than what is packed of B at a time.
    run_all(5, 9000, 1600, {gated, {Activation::kGeluTanh, true, true}});
  });
}

TEST("an epilogue follows a product of no depth") {
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const std::vector<float> bias{1, 2}, residual{10, 20, 30, 40};
  std::vector<float> c(4, kNaN);
  gemm(context, 2, 2, 0, {nullptr, 0, 1}, {nullptr, 2, 1}, bias.data(), c.data(), 2, false, {residual.data()});
  CHECK(c == (std::vector<float>{11, 22, 31, 42}));
}

TEST("gemm of no rows or no columns writes nothing") {
  for_each_isa([] {
    for (const Shape& shape : {Shape{0, 5, 3}, Shape{5, 0, 3}, Shape{0, 0, 0}}) {
      ThreadPool pool(2);
      Arena arena;
      Context context{pool, arena};
      const std::vector<float> x(25, kNaN);
      std::vector<float> c(25, kUntouched);
      gemm(context, shape.m, shape.n, shape.k, {x.data(), 5, 1}, {x.data(), 5, 1}, nullptr, c.data(), 5, false);
      CHECK(c == std::vector<float>(25, kUntouched));
    }
  });
}

TEST("linear_forward equals x·weightᵀ + bias") {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{4, 3, 17}, Shape{17, 100, 64}, Shape{100, 257, 7},
                             Shape{257, 17, 100}, Shape{5, 64, 1000}}) {
    const auto x = normals(shape.m * shape.k, 1), weight = normals(shape.n * shape.k, 2), bias = normals(shape.n, 3);
    const auto wide_x = widen(x), wide_weight = widen(weight), wide_bias = widen(bias);
    for (const bool has_bias : {false, true}) {
      std::vector<double> expected(static_cast<size_t>(shape.m * shape.n));
      reference_gemm<double>(shape.m, shape.n, shape.k, {wide_x.data(), shape.k, 1}, {wide_weight.data(), 1, shape.k},
                             has_bias ? wide_bias.data() : nullptr, expected.data(), shape.n, false);
      for_each_isa([&] {
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> y(expected.size(), kNaN);
        linear_forward(context, x.data(), weight.data(), has_bias ? bias.data() : nullptr, y.data(), shape.m, shape.k,
                       shape.n);
        CHECK(largest_error(y, expected, std::sqrt(static_cast<double>(shape.k))) < kTolerance);
      });
    }
  }
}

TEST("linear_backward writes d_x and adds d_weight and d_bias, as central differences give them") {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{17, 3, 7}, Shape{5, 17, 3}, Shape{64, 5, 3}}) {
    const int64_t num_rows = shape.m, out_features = shape.n, in_features = shape.k;
    const auto x = normals(num_rows * in_features, 1), weight = normals(out_features * in_features, 2);
    const auto bias = normals(out_features, 3), d_y = normals(num_rows * out_features, 4);
    const auto before_weight = normals(out_features * in_features, 5), before_bias = normals(out_features, 6);
    const auto objective = [&](const std::vector<double>& x_, const std::vector<double>& w,
                               const std::vector<double>& b) {
      std::vector<double> y(d_y.size());
      reference_gemm<double>(num_rows, out_features, in_features, {x_.data(), in_features, 1},
                             {w.data(), 1, in_features}, b.data(), y.data(), out_features, false);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * d_y[i];
      return sum;
    };
    const auto wide_x = widen(x), wide_weight = widen(weight), wide_bias = widen(bias);
    const auto expected_x = central_differences(wide_x, [&](auto& v) { return objective(v, wide_weight, wide_bias); });
    auto expected_weight = central_differences(wide_weight, [&](auto& v) { return objective(wide_x, v, wide_bias); });
    auto expected_bias = central_differences(wide_bias, [&](auto& v) { return objective(wide_x, wide_weight, v); });
    for (size_t i = 0; i < expected_weight.size(); ++i) expected_weight[i] += before_weight[i];
    for (size_t i = 0; i < expected_bias.size(); ++i) expected_bias[i] += before_bias[i];
    for_each_isa([&] {
      ThreadPool pool(2);
      Arena arena;
      Context context{pool, arena};
      std::vector<float> d_x(x.size(), kNaN), d_weight = before_weight, d_bias = before_bias;
      linear_backward(context, x.data(), weight.data(), d_y.data(), d_x.data(), d_weight.data(), d_bias.data(),
                      num_rows, in_features, out_features);
      CHECK(largest_error(d_x, expected_x, std::sqrt(static_cast<double>(out_features))) < kTolerance);
      CHECK(largest_error(d_weight, expected_weight, std::sqrt(static_cast<double>(num_rows))) < kTolerance);
      CHECK(largest_error(d_bias, expected_bias, std::sqrt(static_cast<double>(num_rows))) < kTolerance);
    });
  }
}

TEST("linear_backward leaves out what is null, and gives the same bits on 1, 2 and 3 threads") {
  constexpr int64_t kRows = 257, kIn = 100, kOut = 129;
  const auto x = normals(kRows * kIn, 1), weight = normals(kOut * kIn, 2), d_y = normals(kRows * kOut, 3);
  struct Gradients {
    std::vector<float> d_x, d_weight, d_bias;
  };
  const auto run = [&](int num_threads, bool wants_x, bool wants_weight, bool wants_bias) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    Gradients out{std::vector<float>(kRows * kIn, 1.0f), std::vector<float>(kOut * kIn, 1.0f),
                  std::vector<float>(kOut, 1.0f)};
    linear_backward(context, x.data(), weight.data(), d_y.data(), wants_x ? out.d_x.data() : nullptr,
                    wants_weight ? out.d_weight.data() : nullptr, wants_bias ? out.d_bias.data() : nullptr, kRows, kIn,
                    kOut);
    return out;
  };
  for_each_isa([&] {
    const Gradients alone = run(1, true, true, true);
    for (const int num_threads : {2, 3}) {
      const Gradients shared = run(num_threads, true, true, true);
      CHECK(shared.d_x == alone.d_x && shared.d_weight == alone.d_weight && shared.d_bias == alone.d_bias);
    }
    CHECK(run(2, true, false, false).d_x == alone.d_x);
    CHECK(run(2, false, true, false).d_weight == alone.d_weight);
    CHECK(run(2, false, false, true).d_bias == alone.d_bias);
  });
}
