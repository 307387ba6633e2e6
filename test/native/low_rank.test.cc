#include "ops/low_rank.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

std::vector<float> random(int64_t count, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(count));
  Philox{7, stream}.fill_normal(values.data(), static_cast<uint64_t>(count));
  return values;
}

struct Machine {
  ThreadPool pool{2};
  Arena scratch;
  Context context{pool, scratch};
};

/// What dropout of x would leave, taken from the forward pass itself: A = I, B = I.
std::vector<double> mask_of(const LowRankShape& shape) {
  Machine machine;
  LowRankShape plain = shape;
  plain.rank = plain.out_features = plain.ldy = shape.in_features;
  plain.scale = 1;
  const int64_t in = shape.in_features;
  const std::vector<float> ones(static_cast<size_t>(shape.num_rows * in), 1.0f);
  std::vector<float> identity(static_cast<size_t>(in * in)), y(ones.size());
  for (int64_t i = 0; i < in; ++i) identity[static_cast<size_t>(i * in + i)] = 1;
  low_rank_forward(machine.context, plain, ones.data(), identity.data(), identity.data(), y.data());
  return {y.begin(), y.end()};
}

/// y += scale·(mask⊙x)·Aᵀ·Bᵀ in double.
std::vector<double> reference(const LowRankShape& s, const std::vector<double>& mask, const std::vector<double>& x,
                              const std::vector<double>& a, const std::vector<double>& b,
                              const std::vector<float>& before) {
  std::vector<double> y(before.begin(), before.end());
  for (int64_t i = 0; i < s.num_rows; ++i) {
    for (int64_t r = 0; r < s.rank; ++r) {
      double low = 0;
      for (int64_t c = 0; c < s.in_features; ++c) {
        const size_t at = static_cast<size_t>(i * s.in_features + c);
        low += mask[at] * x[at] * a[static_cast<size_t>(r * s.in_features + c)];
      }
      for (int64_t o = 0; o < s.out_features; ++o) {
        y[static_cast<size_t>(i * s.ldy + o)] += s.scale * low * b[static_cast<size_t>(o * s.rank + r)];
      }
    }
  }
  return y;
}

std::vector<double> widened(const std::vector<float>& x) { return {x.begin(), x.end()}; }

double largest_difference(const std::vector<float>& x, const std::vector<double>& y) {
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    largest = std::isnan(x[i]) ? INFINITY : std::max(largest, std::fabs(static_cast<double>(x[i]) - y[i]));
  }
  return largest;
}

const std::vector<LowRankShape>& shapes() {
  static const std::vector<LowRankShape> list = {
      // N, in, out, rank, ldy, scale, dropout, seed, stream
      {1, 1, 1, 1, 1, 2.0f, 0, 0, 0},          {1, 17, 5, 3, 9, 0.5f, 0, 0, 0},
      {5, 7, 33, 4, 40, 1.5f, 0, 0, 0},        {9, 64, 31, 1, 31, -1.0f, 0, 0, 0},
      {6, 33, 7, 8, 21, 2.0f, 0.4f, 11, 1000}, {130, 20, 48, 5, 50, 0.25f, 0.1f, 3, 2},
  };
  return list;
}

}  // namespace

TEST("a low-rank product adds to the columns of y that are its own, and to no other") {
  for_each_isa([] {
    for (const LowRankShape& s : shapes()) {
      Machine machine;
      const std::vector<float> x = random(s.num_rows * s.in_features, 1), a = random(s.rank * s.in_features, 2);
      const std::vector<float> b = random(s.out_features * s.rank, 3), before = random(s.num_rows * s.ldy, 4);
      std::vector<float> y = before;
      low_rank_forward(machine.context, s, x.data(), a.data(), b.data(), y.data());
      const std::vector<double> expected = reference(s, mask_of(s), widened(x), widened(a), widened(b), before);
      CHECK(largest_difference(y, expected) < 1e-4 * s.in_features);
      for (int64_t i = 0; i < s.num_rows; ++i) {
        for (int64_t c = s.out_features; c < s.ldy; ++c) {
          CHECK(y[static_cast<size_t>(i * s.ldy + c)] == before[static_cast<size_t>(i * s.ldy + c)]);
        }
      }
    }
  });
}

TEST("dropout of a low-rank product keeps about its share, scaled up, and another seed keeps another") {
  LowRankShape shape{130, 20, 48, 5, 50, 0.25f, 0.1f, 3, 2};
  const std::vector<double> mask = mask_of(shape);
  double kept = 0;
  for (double value : mask) {
    CHECK(value == 0 || std::fabs(value - 1 / 0.9) < 1e-6);
    kept += value > 0;
  }
  CHECK(std::fabs(kept / static_cast<double>(mask.size()) - 0.9) < 0.03);
  shape.seed = 4;
  CHECK(mask_of(shape) != mask);
}

TEST("gradients of a low-rank product are those of its values, added to what is there") {
  for (const LowRankShape& s : shapes()) {
    Machine machine;
    const std::vector<float> x = random(s.num_rows * s.in_features, 1), a = random(s.rank * s.in_features, 2);
    const std::vector<float> b = random(s.out_features * s.rank, 3), d_y = random(s.num_rows * s.ldy, 5);
    const std::vector<float> zero(d_y.size());
    const std::vector<double> mask = mask_of(s);
    // loss = Σ d_y⊙y over the columns that belong to it
    const auto loss = [&](const std::vector<double>& x_, const std::vector<double>& a_, const std::vector<double>& b_) {
      const std::vector<double> y = reference(s, mask, x_, a_, b_, zero);
      double sum = 0;
      for (int64_t i = 0; i < s.num_rows; ++i) {
        for (int64_t o = 0; o < s.out_features; ++o) {
          sum += static_cast<double>(d_y[static_cast<size_t>(i * s.ldy + o)]) * y[static_cast<size_t>(i * s.ldy + o)];
        }
      }
      return sum;
    };
    std::vector<float> d_x(x.size(), 1.0f), d_a(a.size(), 2.0f), d_b(b.size(), 3.0f);
    low_rank_backward(machine.context, s, x.data(), a.data(), b.data(), d_y.data(), d_x.data(), d_a.data(), d_b.data());
    const std::vector<double> inputs[3] = {widened(x), widened(a), widened(b)};
    const std::vector<float>* gradients[3] = {&d_x, &d_a, &d_b};
    for (int which = 0; which < 3; ++which) {
      const size_t count = inputs[which].size(), stride = std::max<size_t>(1, count / 37);
      for (size_t i = 0; i < count; i += stride) {
        // The loss is linear in each input: any step gives the derivative.
        std::vector<double> up[3] = {inputs[0], inputs[1], inputs[2]}, down[3] = {inputs[0], inputs[1], inputs[2]};
        up[which][i] += 0.5;
        down[which][i] -= 0.5;
        const double expected = loss(up[0], up[1], up[2]) - loss(down[0], down[1], down[2]);
        const double actual = static_cast<double>((*gradients[which])[i]) - (which + 1);
        CHECK(std::fabs(actual - expected) < 1e-3 + 1e-4 * std::fabs(expected));
      }
    }
  }
}
