#include "ops/attention.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "ops/reference_attention.h"
#include "test.h"

using namespace limbeck;

namespace {

// Relative error ‖out − reference‖/‖reference‖ that float32 sums over at most 300 keys may show.
constexpr double kForwardTolerance = 2e-6;
constexpr double kGradientTolerance = 2e-5;
constexpr double kDifferenceStep = 1e-5;

struct Case {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, head_dim;
  bool causal;
  float dropout;
  bool with_maps;
  int64_t sliding_window = 0;
};

const std::vector<Case> kCases = {
    {{1}, 1, 1, 8, true, 0, true},
    {{1, 2, 7}, 2, 1, 20, false, 0, true},
    {{5, 0, 17, 6}, 4, 2, 20, true, 0, true},
    {{50, 33}, 2, 2, 32, true, 0.25f, true},
    {{16, 9}, 3, 3, 64, false, 0.5f, false},
    {{97, 12}, 2, 1, 16, true, 0, true},
    {{128}, 1, 1, 5, false, 0, false},
    {{300}, 2, 1, 20, true, 0.1f, true},
    {{260, 3}, 1, 1, 8, false, 0, true},
    {{520}, 1, 1, 8, true, 0, false},
    {{1, 7, 30}, 2, 1, 20, true, 0, true, 1},
    {{9, 0, 40, 3}, 4, 2, 12, true, 0.25f, true, 3},
    {{97, 16}, 2, 2, 16, true, 0, true, 16},
    {{300, 130}, 2, 1, 20, true, 0.1f, true, 45},
    {{520}, 1, 1, 8, true, 0, false, 100},
    {{24, 5}, 2, 1, 8, true, 0, true, 24},
};

/// Inputs of a case in float, with every output poisoned.
struct Problem {
  explicit Problem(const Case& c, float magnitude = 1.0f) : test_case(c), offsets{0} {
    for (int32_t length : c.lengths) offsets.push_back(offsets.back() + length);
    shape = {static_cast<int64_t>(c.lengths.size()),
             offsets.data(),
             c.heads,
             c.kv_heads,
             c.head_dim,
             c.causal,
             c.sliding_window};
    const int64_t rows = offsets.back();
    const size_t qkv_size = static_cast<size_t>(rows * (c.heads + 2 * c.kv_heads) * c.head_dim);
    const size_t y_size = static_cast<size_t>(rows * c.heads * c.head_dim);
    const float poison = std::numeric_limits<float>::quiet_NaN();
    qkv = normals(qkv_size, 1, magnitude);
    d_y = normals(y_size, 2, 1);
    y.assign(y_size, poison);
    lse.assign(static_cast<size_t>(rows * c.heads), poison);
    d_qkv.assign(qkv_size, poison);
    maps.assign(static_cast<size_t>(attention_map_floats(shape)), poison);
    teacher = teacher_maps();
    if (c.dropout > 0) {
      const Philox random{kSeed, kStream};
      for (size_t i = 0; i < maps.size(); ++i) {
        keep.push_back(random.uniform(i) >= c.dropout ? 1.0 / (1.0 - c.dropout) : 0.0);
      }
    }
  }

  static std::vector<float> normals(size_t count, uint64_t stream, float magnitude) {
    const Philox random{11, stream};
    std::vector<float> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = magnitude * random.normal(i);
    return out;
  }

  /// Rows that sum to about 0.9, so that Σteacher is not mistaken for 1; some entries are 0.
  std::vector<float> teacher_maps() const {
    std::vector<float> out(maps.size(), 0.0f);
    const Philox random{5, 9};
    size_t element = 0;
    for (int32_t t : test_case.lengths) {
      for (int64_t row = 0; row < test_case.heads * t; ++row, element += static_cast<size_t>(t)) {
        const int64_t num_keys = test_case.causal ? row % t + 1 : t;
        double sum = 0;
        for (int64_t j = 0; j < num_keys; ++j) {
          out[element + j] = j % 5 == 4 ? 0.0f : random.uniform(element + j) + 0.01f;
          sum += out[element + j];
        }
        for (int64_t j = 0; j < num_keys; ++j) out[element + j] *= static_cast<float>(0.9 / sum);
      }
    }
    return out;
  }

  void forward(int num_threads) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    attention_forward(context, shape, qkv.data(), y.data(), lse.data(), test_case.with_maps ? maps.data() : nullptr,
                      test_case.dropout, kSeed, kStream);
  }

  void backward(int num_threads, float map_loss_scale) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    attention_backward(context, shape, qkv.data(), y.data(), lse.data(), d_y.data(), d_qkv.data(),
                       map_loss_scale != 0 ? teacher.data() : nullptr, map_loss_scale, test_case.dropout, kSeed,
                       kStream);
  }

  struct Reference {
    std::vector<double> y, lse, maps;
  };

  Reference reference(const std::vector<double>& inputs) const {
    Reference out{std::vector<double>(y.size()), std::vector<double>(lse.size()), std::vector<double>(maps.size())};
    reference_attention_forward<double>(shape, inputs.data(), out.y.data(), out.lse.data(), out.maps.data(),
                                        keep.empty() ? nullptr : keep.data());
    return out;
  }

  /// Σ y·d_y + map_loss_scale·Σ KL(teacher ‖ student).
  double objective(const std::vector<double>& inputs, double map_loss_scale) const {
    const Reference out = reference(inputs);
    double sum = 0;
    for (size_t i = 0; i < out.y.size(); ++i) sum += out.y[i] * d_y[i];
    if (map_loss_scale == 0) return sum;
    const std::vector<double> wide(teacher.begin(), teacher.end());
    return sum +
           map_loss_scale * reference_map_divergence(wide.data(), out.maps.data(), static_cast<int64_t>(wide.size()));
  }

  static constexpr uint64_t kSeed = 0x1234567890ull, kStream = 42;
  Case test_case;
  std::vector<int32_t> offsets;
  AttentionShape shape{};
  std::vector<float> qkv, d_y, y, lse, d_qkv, maps, teacher;
  std::vector<double> keep;
};

double relative_error(const std::vector<float>& out, const std::vector<double>& reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    difference += (out[i] - reference[i]) * (out[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  return std::sqrt(difference / (norm + 1e-300));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST("attention matches the reference: y, log-sum-exp and maps, poisoned outputs") {
  for (const Case& c : kCases) {
    const Problem inputs(c);
    const auto expected = inputs.reference({inputs.qkv.begin(), inputs.qkv.end()});
    for_each_isa([&] {
      Problem problem(c);
      problem.forward(2);
      CHECK(relative_error(problem.y, expected.y) < kForwardTolerance);
      CHECK(relative_error(problem.lse, expected.lse) < kForwardTolerance);
      if (c.with_maps) CHECK(relative_error(problem.maps, expected.maps) < kForwardTolerance);
    });
  }
}

TEST("attention without a log-sum-exp gives the same rows") {
  for_each_isa([] {
    Problem problem({{20, 3, 64}, 2, 2, 32, true, 0, false});
    problem.forward(1);
    std::vector<float> y(problem.y.size(), std::numeric_limits<float>::quiet_NaN());
    ThreadPool pool(1);
    Arena arena;
    Context context{pool, arena};
    attention_forward(context, problem.shape, problem.qkv.data(), y.data(), nullptr, nullptr, 0, 0, 0);
    CHECK(y == problem.y);
  });
}

TEST("attention stays exact for scores in the hundreds") {
  for_each_isa([] {
    Problem problem({{40, 11}, 2, 2, 16, true, 0, true}, 12.0f);
    problem.forward(1);
    const auto expected = problem.reference({problem.qkv.begin(), problem.qkv.end()});
    CHECK(relative_error(problem.y, expected.y) < 1e-4);
    CHECK(relative_error(problem.lse, expected.lse) < kForwardTolerance);
  });
}

TEST("causal maps are exactly zero above the diagonal") {
  Problem problem({{19}, 2, 1, 8, true, 0.5f, true});
  problem.forward(1);
  bool is_zero = true;
  for (int64_t row = 0; row < 2 * 19; ++row) {
    for (int64_t j = row % 19 + 1; j < 19; ++j) is_zero = is_zero && problem.maps[row * 19 + j] == 0.0f;
  }
  CHECK(is_zero);
}

TEST("maps are exactly zero before a sliding window") {
  for_each_isa([] {
    Problem problem({{40}, 2, 1, 8, true, 0, true, 5});
    problem.forward(1);
    for (int64_t row = 0; row < 2 * 40; ++row) {
      double sum = 0;
      bool is_zero = true;
      for (int64_t j = 0; j < 40; ++j) {
        const float probability = problem.maps[row * 40 + j];
        if (j + 5 <= row % 40) is_zero = is_zero && probability == 0.0f;
        sum += probability;
      }
      CHECK(is_zero);
      CHECK(std::fabs(sum - 1) < 1e-5);
    }
  });
}

TEST("attend_row gives the last row of attention, in a window or without") {
  for_each_isa([] {
    for (const int64_t window : {0, 1, 7, 29, 30, 31}) {
      Problem problem({{30}, 4, 2, 20, true, 0, false, window});
      problem.forward(1);
      ThreadPool pool(1);
      Arena arena;
      Context context{pool, arena};
      const int64_t stride = (4 + 2 * 2) * 20;
      std::vector<float> y(4 * 20, std::numeric_limits<float>::quiet_NaN());
      const float* rows = problem.qkv.data();
      attend_row(context, problem.shape, rows + 29 * stride, rows + 4 * 20, rows + 6 * 20, stride, 30, y.data());
      const std::vector<double> expected(problem.y.end() - 4 * 20, problem.y.end());
      CHECK(relative_error(y, expected) < kForwardTolerance);
    }
  });
}

TEST("attention gradients match central differences of the reference, with dropout and teacher maps") {
  for (const Case& c : kCases) {
    for (const float map_loss_scale : {0.0f, 0.3f}) {
      // A teacher row is compared with probabilities before dropout; both terms share one gradient. The differences
      // take most of the time, and are the same for every instruction set.
      const Problem reference(c);
      std::vector<double> inputs(reference.qkv.begin(), reference.qkv.end());
      // Every entry of the small cases, about 60 of the large ones.
      const size_t step = inputs.size() < 1500 ? 1 : inputs.size() / 60 + 1;
      std::vector<double> expected;
      for (size_t i = 0; i < inputs.size(); i += step) {
        const double original = inputs[i];
        inputs[i] = original + kDifferenceStep;
        const double above = reference.objective(inputs, map_loss_scale);
        inputs[i] = original - kDifferenceStep;
        const double below = reference.objective(inputs, map_loss_scale);
        inputs[i] = original;
        expected.push_back((above - below) / (2 * kDifferenceStep));
      }
      for_each_isa([&] {
        Problem problem(c);
        problem.forward(1);
        problem.backward(2, map_loss_scale);
        std::vector<float> gradient;
        for (size_t i = 0; i < problem.d_qkv.size(); i += step) gradient.push_back(problem.d_qkv[i]);
        CHECK(relative_error(gradient, expected) < kGradientTolerance);
      });
    }
  }
}

TEST("scratch for a sequence is enough for any shorter one") {
  for (int64_t length = 2; length <= 3000; ++length) {
    CHECK(attention_scratch_floats(length, 64) >= attention_scratch_floats(length - 1, 64));
  }
}

TEST("every element of a long sequence's gradient is written") {
  Problem problem({{600, 1, 130}, 4, 2, 20, true, 0, false});
  problem.forward(2);
  problem.backward(2, 0);
  bool is_finite = true;
  for (float value : problem.d_qkv) is_finite = is_finite && std::isfinite(value);
  CHECK(is_finite);
}

TEST("attention gives the same bits on one and two threads") {
  for (const Case& c : kCases) {
    Problem one(c), two(c);
    one.forward(1);
    two.forward(2);
    one.backward(1, 0.5f);
    two.backward(2, 0.5f);
    CHECK(same_bits(one.y, two.y));
    CHECK(same_bits(one.lse, two.lse));
    CHECK(same_bits(one.d_qkv, two.d_qkv));
  }
}

TEST("the map divergence matches the reference, and stays finite where a student probability underflowed") {
  for_each_isa([] {
    Problem problem({{50, 1, 300, 7}, 3, 1, 8, true, 0, true});
    problem.forward(1);
    ThreadPool pool(2);
    Arena arena;
    Context context{pool, arena};
    const std::vector<double> teacher(problem.teacher.begin(), problem.teacher.end());
    const std::vector<double> student(problem.maps.begin(), problem.maps.end());
    const double expected =
        reference_map_divergence(teacher.data(), student.data(), static_cast<int64_t>(teacher.size()));
    const double value = attention_map_divergence(context, problem.shape, problem.teacher.data(), problem.maps.data());
    CHECK(std::fabs(value - expected) < 1e-5 * std::fabs(expected));

    problem.maps[0] = 0;  // the teacher gives it mass
    CHECK(std::isfinite(attention_map_divergence(context, problem.shape, problem.teacher.data(), problem.maps.data())));
  });
}

TEST("attention refuses a window that looks ahead") {
  const int32_t offsets[] = {0, 1};
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const std::vector<float> qkv(64);
  std::vector<float> y(64), lse(8);
  for (const auto& [causal, window] : {std::pair{false, 2}, {true, -1}}) {
    const AttentionShape shape{1, offsets, 2, 2, 4, causal, window};
    CHECK_ERROR("ERR_INVALID_ARGUMENT",
                attention_forward(context, shape, qkv.data(), y.data(), lse.data(), nullptr, 0, 0, 0));
  }
}

TEST("attention refuses heads that do not divide and dropout outside [0, 1)") {
  const int32_t offsets[] = {0, 1};
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const std::vector<float> qkv(64);
  std::vector<float> y(64), lse(8);
  for (const auto& [heads, kv_heads, dropout] : {std::tuple{3, 2, 0.0f}, {2, 0, 0.0f}, {2, 1, 1.0f}, {2, 1, -0.1f}}) {
    const AttentionShape shape{1, offsets, heads, kv_heads, 4, true};
    std::string code;
    try {
      attention_forward(context, shape, qkv.data(), y.data(), lse.data(), nullptr, dropout, 0, 0);
    } catch (const Error& error) {
      code = error.code();
    }
    CHECK(code == "ERR_INVALID_ARGUMENT");
  }
}
