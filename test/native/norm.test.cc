#include "ops/norm.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/reference.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kEps = 1e-5f;
// Of fp32 sums over at most 1,000 normals, and of products of a few of them.
constexpr double kForwardTolerance = 2e-6;
constexpr double kGradientTolerance = 1e-5;

const std::vector<int64_t> kHiddenSizes = {1, 3, 5, 7, 17, 64, 100, 257, 1000};

std::vector<float> normals(int64_t count, uint64_t stream, float mean = 0) {
  const Philox random{4, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = mean + random.normal(i);
  return out;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

struct Outputs {
  std::vector<float> y, mean, rstd, d_x, d_gamma, d_beta;
  bool operator==(const Outputs& other) const {
    return y == other.y && mean == other.mean && rstd == other.rstd && d_x == other.d_x && d_gamma == other.d_gamma &&
           d_beta == other.d_beta;
  }
};

struct WideOutputs {
  std::vector<double> y, mean, rstd;
};

/// A layer norm or an RMS norm of [num_rows, hidden_size], with what its outputs must be.
struct Norm {
  Norm(bool is_rms, int64_t num_rows, int64_t hidden_size, float mean = 0)
      : is_rms(is_rms),
        num_rows(num_rows),
        hidden_size(hidden_size),
        x(normals(num_rows * hidden_size, 1, mean)),
        gamma(normals(hidden_size, 2, 1)),
        beta(normals(hidden_size, 3)),
        d_y(normals(num_rows * hidden_size, 4)),
        before_x(normals(num_rows * hidden_size, 5)),
        before_gamma(normals(hidden_size, 6)),
        before_beta(normals(hidden_size, 7)) {}

  WideOutputs reference(const std::vector<double>& wide_x, const std::vector<double>& wide_gamma,
                        const std::vector<double>& wide_beta) const {
    WideOutputs out{std::vector<double>(x.size()), std::vector<double>(is_rms ? 0 : num_rows),
                    std::vector<double>(num_rows)};
    if (is_rms) {
      reference_rms_norm_forward<double>(wide_x.data(), wide_gamma.data(), out.y.data(), out.rstd.data(), num_rows,
                                         hidden_size, kEps);
    } else {
      reference_layer_norm_forward<double>(wide_x.data(), wide_gamma.data(), wide_beta.data(), out.y.data(),
                                           out.mean.data(), out.rstd.data(), num_rows, hidden_size, kEps);
    }
    return out;
  }
  WideOutputs reference() const { return reference(widen(x), widen(gamma), widen(beta)); }

  double objective(const std::vector<double>& wide_x, const std::vector<double>& wide_gamma,
                   const std::vector<double>& wide_beta) const {
    const WideOutputs out = reference(wide_x, wide_gamma, wide_beta);
    double sum = 0;
    for (size_t i = 0; i < out.y.size(); ++i) sum += out.y[i] * d_y[i];
    return sum;
  }

  Outputs run(int num_threads) const {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    Outputs out{std::vector<float>(x.size(), kNaN),
                std::vector<float>(is_rms ? 0 : num_rows, kNaN),
                std::vector<float>(num_rows, kNaN),
                before_x,
                before_gamma,
                before_beta};
    if (is_rms) {
      rms_norm_forward(context, x.data(), gamma.data(), out.y.data(), out.rstd.data(), num_rows, hidden_size, kEps);
      rms_norm_backward(context, x.data(), gamma.data(), out.rstd.data(), d_y.data(), out.d_x.data(),
                        out.d_gamma.data(), num_rows, hidden_size);
    } else {
      layer_norm_forward(context, x.data(), gamma.data(), beta.data(), out.y.data(), out.mean.data(), out.rstd.data(),
                         num_rows, hidden_size, kEps);
      layer_norm_backward(context, x.data(), gamma.data(), out.mean.data(), out.rstd.data(), d_y.data(), out.d_x.data(),
                          out.d_gamma.data(), out.d_beta.data(), num_rows, hidden_size);
    }
    return out;
  }

  bool is_rms;
  int64_t num_rows, hidden_size;
  std::vector<float> x, gamma, beta, d_y, before_x, before_gamma, before_beta;
};

std::vector<double> sum(std::vector<double> x, const std::vector<float>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  return x;
}

}  // namespace

TEST("layer_norm_forward and rms_norm_forward equal the reference for every width") {
  for (const bool is_rms : {false, true}) {
    for (const int64_t num_rows : {0, 1, 3, 65, 130}) {
      for (const int64_t hidden_size : kHiddenSizes) {
        const Norm norm(is_rms, num_rows, hidden_size);
        const WideOutputs expected = norm.reference();
        for_each_isa([&] {
          const Outputs out = norm.run(2);
          CHECK(largest_error(out.y, expected.y, 1) < kForwardTolerance);
          CHECK(largest_error(out.mean, expected.mean, 1) < kForwardTolerance);
          CHECK(largest_error(out.rstd, expected.rstd, 0) < kForwardTolerance);
        });
      }
    }
  }
}

TEST("layer_norm_forward keeps its digits where the mean is far larger than the deviation") {
  const Norm norm(false, 5, 257, 1000.0f);
  const WideOutputs expected = norm.reference();
  // The mean itself is known to a few 1,000·2⁻²⁴ = 6e-5; a one-pass variance would be lost altogether.
  for_each_isa([&] { CHECK(largest_error(norm.run(1).y, expected.y, 1) < 5e-4); });
}

TEST("the norms may be taken in place") {
  for_each_isa([] {
    const Norm layer(false, 7, 100), rms(true, 7, 100);
    ThreadPool pool(2);
    Arena arena;
    Context context{pool, arena};
    std::vector<float> x = layer.x, mean(7), rstd(7);
    layer_norm_forward(context, x.data(), layer.gamma.data(), layer.beta.data(), x.data(), mean.data(), rstd.data(), 7,
                       100, kEps);
    CHECK(x == layer.run(1).y);
    x = rms.x;
    rms_norm_forward(context, x.data(), rms.gamma.data(), x.data(), rstd.data(), 7, 100, kEps);
    CHECK(x == rms.run(1).y);
  });
}

TEST("layer_norm_backward and rms_norm_backward add what central differences give") {
  for (const bool is_rms : {false, true}) {
    for (const int64_t hidden_size : kHiddenSizes) {
      const int64_t num_rows = hidden_size < 10 ? 130 : hidden_size < 300 ? 3 : 1;
      const Norm norm(is_rms, num_rows, hidden_size);
      const auto x = widen(norm.x), gamma = widen(norm.gamma), beta = widen(norm.beta);
      const auto d_x =
          sum(central_differences(x, [&](auto& v) { return norm.objective(v, gamma, beta); }), norm.before_x);
      const auto d_gamma =
          sum(central_differences(gamma, [&](auto& v) { return norm.objective(x, v, beta); }), norm.before_gamma);
      const auto d_beta =
          sum(central_differences(beta, [&](auto& v) { return norm.objective(x, gamma, v); }), norm.before_beta);
      const WideOutputs expected = norm.reference();
      // A row of nearly equal values has a large rstd, and d_x is the difference of terms that large.
      const double largest_rstd = *std::max_element(expected.rstd.begin(), expected.rstd.end());
      for_each_isa([&] {
        const Outputs out = norm.run(2);
        CHECK(largest_error(out.d_x, d_x, largest_rstd) < kGradientTolerance);
        CHECK(largest_error(out.d_gamma, d_gamma, 1) < kGradientTolerance);
        CHECK(largest_error(out.d_beta, d_beta, 1) < kGradientTolerance);
      });
    }
  }
}

TEST("the norms and their gradients have the same bits on 1, 2 and 3 threads") {
  for (const bool is_rms : {false, true}) {
    const Norm norm(is_rms, 1000, 33);
    for_each_isa([&] {
      const Outputs alone = norm.run(1);
      CHECK(norm.run(2) == alone);
      CHECK(norm.run(3) == alone);
    });
  }
}

TEST("the norms of heads are those of rows apart, and leave what lies between rows alone") {
  constexpr int64_t kRows = 70, kHeads = 3;
  for (const int64_t head_dim : {2, 6, 16, 20, 64}) {
    const Norm norm(true, kRows * kHeads, head_dim);
    const WideOutputs expected = norm.reference();
    const int64_t stride = kHeads * head_dim + 5;
    const auto spread = [&](const std::vector<float>& rows, float between) {
      std::vector<float> out(kRows * stride, between);
      for (int64_t r = 0; r < kRows; ++r) {
        std::copy_n(rows.begin() + r * kHeads * head_dim, kHeads * head_dim, out.begin() + r * stride);
      }
      return out;
    };
    const auto gather = [&](const std::vector<float>& rows) {
      std::vector<float> out;
      for (int64_t r = 0; r < kRows; ++r) {
        out.insert(out.end(), rows.begin() + r * stride, rows.begin() + r * stride + kHeads * head_dim);
      }
      return out;
    };
    for_each_isa([&] {
      const Outputs rows = norm.run(2);
      std::vector<float> first_gamma;
      for (const int num_threads : {1, 2, 3}) {
        ThreadPool pool(num_threads);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> y = spread(norm.x, 9), d_y = spread(norm.d_y, 9), rstd(kRows * kHeads, kNaN);
        std::vector<float> d_gamma = norm.before_gamma;
        const std::vector<float> x = y;
        rms_norm_heads_forward(context, y.data(), stride, norm.gamma.data(), y.data(), stride, rstd.data(), kRows,
                               kHeads, head_dim, kEps);
        CHECK(y == spread(rows.y, 9));
        CHECK(rstd == rows.rstd);
        rms_norm_heads_backward(context, x.data(), stride, norm.gamma.data(), rstd.data(), d_y.data(), stride,
                                d_gamma.data(), kRows, kHeads, head_dim);
        std::vector<float> d_x = gather(d_y);
        for (int64_t i = kHeads * head_dim; i < stride; ++i) CHECK(d_y[i] == 9.0f);
        for (size_t i = 0; i < d_x.size(); ++i) d_x[i] += norm.before_x[i];
        const std::vector<double> wide_x = widen(rows.d_x), wide_gamma = widen(rows.d_gamma);
        const double largest_rstd = *std::max_element(expected.rstd.begin(), expected.rstd.end());
        CHECK(largest_error(d_x, wide_x, largest_rstd) < kGradientTolerance);
        CHECK(largest_error(d_gamma, wide_gamma, 1) < kGradientTolerance);
        if (num_threads == 1) first_gamma = d_gamma;
        CHECK(d_gamma == first_gamma);
      }
    });
  }
}
