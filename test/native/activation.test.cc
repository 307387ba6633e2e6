#include "ops/activation.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/reference.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kTolerance = 2e-6;

// The last ones are cut into several tasks.
const std::vector<int64_t> kCounts = {0, 1, 3, 5, 7, 17, 64, 100, 257, 1000, 8192, 20001};
const std::vector<int64_t> kSizes = {1, 3, 5, 7, 17, 64, 100, 257, 1000};

std::vector<float> normals(int64_t count, uint64_t stream, float deviation = 1) {
  const Philox random{6, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = deviation * random.normal(i);
  return out;
}

using Forward = void (*)(Context&, const float*, float*, int64_t);
using Backward = void (*)(Context&, const float*, const float*, float*, int64_t);

struct Gelu {
  Forward forward;
  Backward backward;
  double (*reference)(double);
};

const std::vector<Gelu> kGelus = {
    {gelu_tanh_forward, gelu_tanh_backward, reference_gelu_tanh<double>},
    {gelu_erf_forward, gelu_erf_backward, reference_gelu_erf<double>},
};

double derivative(double (*function)(double), double x) {
  constexpr double kStep = 1e-5;
  return (function(x + kStep) - function(x - kStep)) / (2 * kStep);
}

}  // namespace

TEST("gelu_tanh and gelu_erf equal the reference, and their gradients central differences, for every length") {
  for (const Gelu& activation : kGelus) {
    for (const int64_t count : kCounts) {
      const auto x = normals(count, 1, 2), d_y = normals(count, 2);
      std::vector<double> expected_y, expected_d_x;
      for (size_t i = 0; i < x.size(); ++i) {
        expected_y.push_back(activation.reference(x[i]));
        expected_d_x.push_back(d_y[i] * derivative(activation.reference, x[i]));
      }
      for_each_isa([&] {
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> y(x.size(), kNaN), d_x(x.size(), kNaN), in_place = d_y;
        activation.forward(context, x.data(), y.data(), count);
        activation.backward(context, x.data(), d_y.data(), d_x.data(), count);
        activation.backward(context, x.data(), in_place.data(), in_place.data(), count);
        CHECK(largest_error(y, expected_y, 0.1) < kTolerance);
        CHECK(largest_error(d_x, expected_d_x, 1) < kTolerance);
        CHECK(in_place == d_x);
      });
    }
  }
}

TEST("gelu_tanh and gelu_erf keep their digits over both tails") {
  std::vector<float> x;
  for (float v = -1000; v <= 1000; v += v > -20 && v < 20 ? 0.0078125f : 1.0f) x.push_back(v);
  const std::vector<float> d_y(x.size(), 1.0f);
  for (const Gelu& activation : kGelus) {
    std::vector<double> expected_y, expected_d_x;
    for (const float v : x) {
      expected_y.push_back(activation.reference(v));
      expected_d_x.push_back(derivative(activation.reference, v));
    }
    for_each_isa([&] {
      ThreadPool pool(1);
      Arena arena;
      Context context{pool, arena};
      std::vector<float> y(x.size(), kNaN), d_x(x.size(), kNaN);
      activation.forward(context, x.data(), y.data(), static_cast<int64_t>(x.size()));
      activation.backward(context, x.data(), d_y.data(), d_x.data(), static_cast<int64_t>(x.size()));
      // The exponent is as large as 80 and rounded to float: some 80·2⁻²⁴ a term, down to 1e-30.
      CHECK(largest_error(y, expected_y, 1e-30) < 2e-5);
      CHECK(largest_error(y, expected_y, 0.1) < kTolerance);
      CHECK(largest_error(d_x, expected_d_x, 1) < kTolerance);
    });
  }
}

TEST("swiglu equals the reference, and its gradient central differences, for every width") {
  for (const int64_t num_rows : {0, 1, 3, 100}) {
    for (const int64_t size : kSizes) {
      const auto gate_up = normals(num_rows * 2 * size, 1, 2), d_y = normals(num_rows * size, 2);
      std::vector<double> expected_y(d_y.size()), expected_gradient(gate_up.size());
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t j = 0; j < size; ++j) {
          const int64_t gate_index = 2 * r * size + j, up_index = gate_index + size;
          const double gradient = d_y[r * size + j];
          const auto expected = central_differences({gate_up[gate_index], gate_up[up_index]},
                                                    [&](auto& v) { return gradient * reference_swiglu(v[0], v[1]); });
          expected_y[r * size + j] = reference_swiglu<double>(gate_up[gate_index], gate_up[up_index]);
          expected_gradient[gate_index] = expected[0];
          expected_gradient[up_index] = expected[1];
        }
      }
      for_each_isa([&] {
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> y(d_y.size(), kNaN), d_gate_up(gate_up.size(), kNaN);
        swiglu_forward(context, gate_up.data(), y.data(), num_rows, size);
        swiglu_backward(context, gate_up.data(), d_y.data(), d_gate_up.data(), num_rows, size);
        CHECK(largest_error(y, expected_y, 1) < kTolerance);
        CHECK(largest_error(d_gate_up, expected_gradient, 1) < kTolerance);
      });
    }
  }
}

TEST("dropout keeps element i where Philox's uniform number first + i is at least the probability, on 1 to 3 threads") {
  constexpr uint64_t kSeed = 0x123456789ABCull, kStream = 0xFEDCBA987ull;
  const Philox random{kSeed, kStream};
  for (const int64_t count : kCounts) {
    const auto x = normals(count, 1);
    const uint64_t first = static_cast<uint64_t>(count) * 3 % 7;  // 0 and not, divisible by four and not
    for (const float probability : {0.0f, 0.1f, 0.5f, 0.9f}) {
      std::vector<float> expected = x;
      for (size_t i = 0; i < x.size(); ++i) {
        expected[i] *= random.uniform(first + i) >= probability ? 1.0f / (1.0f - probability) : 0.0f;
      }
      for_each_isa([&] {
        for (const int num_threads : {1, 2, 3}) {
          ThreadPool pool(num_threads);
          Arena arena;
          Context context{pool, arena};
          std::vector<float> out = x;
          dropout(context, out.data(), count, probability, kSeed, kStream, first);
          CHECK(out == expected);
        }
      });
    }
  }
}

TEST("add_in_place adds element by element") {
  for (const int64_t count : kCounts) {
    const auto x = normals(count, 1), before = normals(count, 2);
    std::vector<float> expected = before;
    for (size_t i = 0; i < x.size(); ++i) expected[i] += x[i];
    for_each_isa([&] {
      ThreadPool pool(2);
      Arena arena;
      Context context{pool, arena};
      std::vector<float> y = before;
      add_in_place(context, x.data(), y.data(), count);
      CHECK(y == expected);
    });
  }
}

TEST("activations have the same bits on 1, 2 and 3 threads") {
  constexpr int64_t kRows = 67, kSize = 333;
  const auto x = normals(kRows * 2 * kSize, 1, 2), d_y = normals(kRows * 2 * kSize, 2);
  const auto run = [&](int num_threads) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    const auto count = static_cast<int64_t>(x.size());
    std::vector<std::vector<float>> outputs(6, std::vector<float>(x.size()));
    gelu_tanh_forward(context, x.data(), outputs[0].data(), count);
    gelu_tanh_backward(context, x.data(), d_y.data(), outputs[1].data(), count);
    gelu_erf_forward(context, x.data(), outputs[2].data(), count);
    gelu_erf_backward(context, x.data(), d_y.data(), outputs[3].data(), count);
    swiglu_forward(context, x.data(), outputs[4].data(), kRows, kSize);
    swiglu_backward(context, x.data(), d_y.data(), outputs[5].data(), kRows, kSize);
    return outputs;
  };
  for_each_isa([&] {
    const auto alone = run(1);
    CHECK(run(2) == alone);
    CHECK(run(3) == alone);
  });
}
