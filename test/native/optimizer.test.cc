#include "ops/optimizer.h"

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
constexpr double kTolerance = 1e-6;

// The last ones are cut into several tasks.
const std::vector<int64_t> kCounts = {0, 1, 3, 5, 7, 17, 64, 100, 257, 1000, 16385, 50000};

std::vector<float> normals(int64_t count, uint64_t stream, float deviation = 1) {
  const Philox random{10, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = deviation * random.normal(i);
  return out;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// Calls body(context) with that many threads.
template <typename Body>
auto with_threads(int num_threads, Body&& body) {
  ThreadPool pool(num_threads);
  Arena arena;
  Context context{pool, arena};
  return body(context);
}

/// Parameters and state after three updates.
using State = std::vector<std::vector<float>>;
constexpr int kSteps = 3;

std::vector<float> gradients_of_step(int64_t count, int step) {
  return normals(count, 10 + static_cast<uint64_t>(step), static_cast<float>(step));
}

AdamWOptions adamw_options(int step, float weight_decay) {
  return {0.05f, 0.9f, 0.999f, 1e-8f, weight_decay, step, 0.5f};
}

State run_adamw(Context& context, int64_t count, float weight_decay) {
  State state = {normals(count, 1), std::vector<float>(count), std::vector<float>(count)};
  for (int step = 1; step <= kSteps; ++step) {
    const auto gradients = gradients_of_step(count, step);
    adamw(context, state[0].data(), gradients.data(), state[1].data(), state[2].data(), count,
          adamw_options(step, weight_decay));
  }
  return state;
}

SgdOptions sgd_options(float weight_decay) { return {0.05f, 0.9f, weight_decay, 0.5f}; }

State run_sgd(Context& context, int64_t count, float weight_decay) {
  State state = {normals(count, 1), std::vector<float>(count)};
  for (int step = 1; step <= kSteps; ++step) {
    const auto gradients = gradients_of_step(count, step);
    sgd(context, state[0].data(), gradients.data(), state[1].data(), count, sgd_options(weight_decay));
  }
  return state;
}

}  // namespace

TEST("adamw equals the reference over three steps, with and without weight decay") {
  for (const int64_t count : kCounts) {
    for (const float weight_decay : {0.0f, 0.1f}) {
      std::vector<double> parameters = widen(normals(count, 1)), first(count), second(count);
      for (int step = 1; step <= kSteps; ++step) {
        const auto gradients = widen(gradients_of_step(count, step));
        reference_adamw<double>(parameters.data(), gradients.data(), first.data(), second.data(), count,
                                adamw_options(step, weight_decay));
      }
      for_each_isa([&] {
        const State state = with_threads(2, [&](Context& context) { return run_adamw(context, count, weight_decay); });
        CHECK(largest_error(state[0], parameters, 1) < kTolerance);
        CHECK(largest_error(state[1], first, 0.1) < kTolerance);
        CHECK(largest_error(state[2], second, 0) < kTolerance);
      });
    }
  }
}

TEST("adamw's first step moves each parameter by the learning rate against the sign of its gradient") {
  for_each_isa([] {
    std::vector<float> parameters(10, 1.0f), gradients, first(10), second(10);
    for (int i = 0; i < 10; ++i)
      gradients.push_back((i % 2 == 0 ? 1.0f : -1.0f) * std::pow(10.0f, static_cast<float>(i - 5)));
    with_threads(1, [&](Context& context) {
      adamw(context, parameters.data(), gradients.data(), first.data(), second.data(), 10, adamw_options(1, 0));
    });
    for (int i = 0; i < 10; ++i) CHECK(std::fabs(parameters[i] - (i % 2 == 0 ? 0.95f : 1.05f)) < 1e-4f);
  });
}

TEST("adamw leaves parameters without gradient where they are, and decays them alone") {
  for_each_isa([] {
    std::vector<float> parameters(20, 2.0f), first(20), second(20);
    const std::vector<float> gradients(20, 0.0f);
    with_threads(1, [&](Context& context) {
      adamw(context, parameters.data(), gradients.data(), first.data(), second.data(), 20, adamw_options(1, 0));
      CHECK(parameters == std::vector<float>(20, 2.0f));
      adamw(context, parameters.data(), gradients.data(), first.data(), second.data(), 20, adamw_options(2, 0.1f));
    });
    for (const float parameter : parameters) CHECK(std::fabs(parameter - 2 * (1 - 0.05 * 0.1)) < 1e-6);
  });
}

TEST("sgd equals the reference over three steps, with and without weight decay") {
  for (const int64_t count : kCounts) {
    for (const float weight_decay : {0.0f, 0.1f}) {
      std::vector<double> parameters = widen(normals(count, 1)), buffer(count);
      for (int step = 1; step <= kSteps; ++step) {
        const auto gradients = widen(gradients_of_step(count, step));
        reference_sgd<double>(parameters.data(), gradients.data(), buffer.data(), count, sgd_options(weight_decay));
      }
      for_each_isa([&] {
        const State state = with_threads(2, [&](Context& context) { return run_sgd(context, count, weight_decay); });
        CHECK(largest_error(state[0], parameters, 1) < kTolerance);
        CHECK(largest_error(state[1], buffer, 1) < kTolerance);
      });
    }
  }
}

TEST("global_norm equals the sum in double, also where squares in float would overflow or vanish") {
  for (const int64_t count : kCounts) {
    for (const float deviation : {1.0f, 1e15f, 1e-15f}) {
      const auto x = normals(count, 1, deviation);
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      for_each_isa([&] {
        const double norm = with_threads(2, [&](Context& context) { return global_norm(context, x.data(), count); });
        CHECK(std::fabs(norm - std::sqrt(squares)) <= 1e-6 * std::sqrt(squares));
      });
    }
  }
}

TEST("interpolate moves the parameters by alpha towards the target; 0 and 1 are exact") {
  for (const int64_t count : kCounts) {
    // Magnitudes so different that θ + (φ − θ) would lose φ.
    const auto target = normals(count, 1, 1e-6f), parameters = normals(count, 2, 1e6f);
    for (const float alpha : {0.0f, 0.3f, 1.0f}) {
      std::vector<double> expected;
      for (size_t i = 0; i < target.size(); ++i) {
        expected.push_back(parameters[i] +
                           static_cast<double>(alpha) * (static_cast<double>(target[i]) - parameters[i]));
      }
      for_each_isa([&] {
        std::vector<float> out = parameters;
        with_threads(2, [&](Context& context) { interpolate(context, out.data(), target.data(), count, alpha); });
        if (alpha == 0) CHECK(out == parameters);
        if (alpha == 1) CHECK(out == target);
        if (alpha == 0.3f) CHECK(largest_error(out, expected, 1e6) < kTolerance);
      });
    }
  }
}

TEST("interpolate_weighted moves each parameter by alpha times its weight; 0 and 1 are exact") {
  for (const int64_t count : kCounts) {
    const auto target = normals(count, 1), parameters = normals(count, 2);
    std::vector<float> weights(static_cast<size_t>(count));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i % 5) / 4;
    for (const float alpha : {0.0f, 0.3f, 1.0f}) {
      std::vector<float> out = parameters;
      with_threads(2, [&](Context& context) {
        interpolate_weighted(context, out.data(), target.data(), weights.data(), count, alpha);
      });
      for (size_t i = 0; i < out.size(); ++i) {
        const double rate = static_cast<double>(alpha) * weights[i];
        if (rate == 0) CHECK(out[i] == parameters[i]);
        if (rate == 1) CHECK(out[i] == target[i]);
        CHECK(std::fabs(out[i] - (parameters[i] + rate * (static_cast<double>(target[i]) - parameters[i]))) < 1e-6);
      }
    }
  }
}

TEST("add_squares adds the square of every entry") {
  for (const int64_t count : kCounts) {
    const auto x = normals(count, 1);
    std::vector<float> sums = normals(count, 2);
    const std::vector<float> before = sums;
    with_threads(2, [&](Context& context) { add_squares(context, sums.data(), x.data(), count); });
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(std::fabs(sums[i] - (before[i] + static_cast<double>(x[i]) * x[i])) < 2e-6);
    }
  }
}

TEST("squared_error leaves student − teacher and returns its sum of squares") {
  for (const int64_t count : kCounts) {
    const auto student = normals(count, 1), teacher = normals(count, 2);
    std::vector<double> difference;
    double squares = 0;
    for (size_t i = 0; i < student.size(); ++i) {
      difference.push_back(static_cast<double>(student[i]) - teacher[i]);
      squares += difference[i] * difference[i];
    }
    for_each_isa([&] {
      std::vector<float> out = student;
      const double error =
          with_threads(2, [&](Context& context) { return squared_error(context, out.data(), teacher.data(), count); });
      CHECK(std::fabs(error - squares) <= 1e-6 * squares);
      CHECK(largest_error(out, difference, 1) < kTolerance);
    });
  }
}

TEST("a NaN or an infinity in a gradient is seen in global_norm") {
  for_each_isa([] {
    for (const size_t position : {0, 1030, 49999}) {
      auto x = normals(50000, 1);
      with_threads(2, [&](Context& context) {
        x[position] = kNaN;
        CHECK(std::isnan(global_norm(context, x.data(), 50000)));
        x[position] = std::numeric_limits<float>::infinity();
        CHECK(std::isinf(global_norm(context, x.data(), 50000)));
      });
    }
  });
}

TEST("updates and sums have the same bits on 1, 2 and 3 threads") {
  constexpr int64_t kCount = 50000;
  struct Result {
    State adamw, sgd;
    std::vector<float> difference;
    double norm, error;
  };
  const auto run = [&](int num_threads) {
    return with_threads(num_threads, [&](Context& context) {
      Result result{run_adamw(context, kCount, 0.1f), run_sgd(context, kCount, 0.1f), normals(kCount, 1), 0, 0};
      const auto x = normals(kCount, 2);
      result.norm = global_norm(context, x.data(), kCount);
      result.error = squared_error(context, result.difference.data(), x.data(), kCount);
      return result;
    });
  };
  for_each_isa([&] {
    const Result alone = run(1);
    for (const int num_threads : {2, 3}) {
      const Result shared = run(num_threads);
      CHECK(shared.adamw == alone.adamw && shared.sgd == alone.sgd);
      CHECK(shared.norm == alone.norm && shared.error == alone.error && shared.difference == alone.difference);
    }
  });
}
