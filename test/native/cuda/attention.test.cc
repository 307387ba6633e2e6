#include "cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "device_test.h"
#include "ops/attention.h"
#include "ops/reference_attention.h"
#include "ops/value_relation.h"

using namespace limbeck_test;
using limbeck::Philox;
using limbeck::cuda::AttentionDropout;
using limbeck::cuda::to_float;

namespace {

constexpr uint64_t kSeed = 0x1234567890ull, kStream = 42;
constexpr float kMapLossScale = 0.7f;

struct Case {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, head_dim;
  bool causal;
  int64_t window = 0;
  float dropout = 0;
  bool has_teacher = false;
};

const std::vector<Case> kCases = {
    {{1, 2, 15, 16, 17}, 2, 2, 64, true},
    {{63, 64, 65}, 1, 1, 64, true},
    {{127, 128, 0, 129, 130}, 1, 1, 64, true},
    {{200, 3}, 2, 1, 64, false},
    {{70, 0, 1, 33}, 4, 2, 32, true},
    {{150}, 1, 1, 32, false},
    {{40, 130}, 2, 2, 16, true},
    {{90, 20}, 2, 1, 8, true},
    {{66, 5}, 1, 1, 40, false},
    {{100, 31}, 2, 1, 80, true},
    {{130, 9}, 1, 1, 128, true},
    {{67}, 2, 2, 128, false},
    {{200, 40, 7}, 2, 1, 64, true, 1},
    {{200, 130}, 1, 1, 64, true, 33},
    {{140}, 1, 1, 128, true, 64},
    {{200}, 1, 1, 32, true, 100},
    {{50, 24}, 1, 1, 64, true, 24},
    {{130, 17, 1}, 2, 1, 64, true, 0, 0.25f},
    {{101}, 1, 1, 32, false, 0, 0.5f},
    {{75, 6}, 2, 2, 128, true, 20, 0.1f},
    {{50, 17, 64}, 2, 1, 64, true, 20, 0.25f, true},
    {{64, 33}, 4, 2, 48, false},
    {{130, 17}, 2, 1, 64, true, 0, 0, true},
    {{70, 5}, 2, 1, 64, false, 0, 0.25f, true},
    {{90}, 1, 1, 32, true, 17, 0, true},
    {{45, 70}, 2, 2, 128, true, 0, 0.3f, true},
    // Head dimensions and widths that only plain kernels take.
    {{30, 0, 70}, 4, 2, 5, true, 0, 0, true},
    {{20, 66}, 1, 1, 20, false, 0, 0.25f, true},
    {{40}, 2, 1, 130, true, 9, 0.25f, true},
    {{70}, 1, 1, 200, true},
    {{10}, 1, 1, 256, false},
};

/// More of what kernels of tiles of 64 rows do, without dropout and teacher.
const std::vector<Case> kLongCases = {
    {{257, 300}, 2, 2, 64, true},  {{700}, 1, 1, 64, true},           {{520, 600, 0, 1, 580}, 2, 1, 64, false},
    {{513, 330}, 4, 2, 40, false}, {{640, 600}, 1, 1, 48, true, 100}, {{700, 590}, 2, 1, 64, true, 300},
    {{520}, 1, 1, 64, true, 1},    {{320, 384}, 3, 1, 64, true, 257}, {{129, 0, 1, 64, 65, 193}, 6, 2, 64, true},
    {{192, 70}, 4, 1, 56, false},  {{150, 131}, 2, 1, 40, true, 33},
};

/// Inputs of a case as T holds them, on both sides, and what the CPU makes of them.
template <typename T>
struct Problem {
  explicit Problem(const Case& c, float magnitude = 1) : test_case(c) {
    for (int32_t t : c.lengths) {
      offsets.push_back(offsets.back() + t);
      map_offsets.push_back(map_offsets.back() + int64_t{t} * t);
      longest = std::max<int64_t>(longest, t);
    }
    num_tokens = offsets.back();
    qkv_width = (c.heads + 2 * c.kv_heads) * c.head_dim;
    y_width = c.heads * c.head_dim;
    num_sequences = static_cast<int64_t>(c.lengths.size());
    map_floats = c.heads * map_offsets.back();
    qkv = rounded<T>(random_floats(num_tokens * qkv_width, 1, magnitude));
    d_y = rounded<T>(random_floats(num_tokens * y_width, 2));
    // Rows that sum to about 0.9, so that Σ teacher is not mistaken for 1; some entries are 0.
    teacher.assign(static_cast<size_t>(map_floats), 0.0f);
    const Philox random{5, 9};
    size_t element = 0;
    for (int32_t t : c.lengths) {
      for (int64_t row = 0; row < c.heads * t; ++row, element += static_cast<size_t>(t)) {
        const int64_t num_keys = c.causal ? row % t + 1 : t;
        double sum = 0;
        for (int64_t j = 0; j < num_keys; ++j) {
          teacher[element + j] = j % 5 == 4 ? 0.0f : random.uniform(element + j) + 0.01f;
          sum += teacher[element + j];
        }
        for (int64_t j = 0; j < num_keys; ++j) teacher[element + j] *= static_cast<float>(0.9 / sum);
      }
    }
  }

  limbeck::AttentionShape cpu_shape() const {
    return {num_sequences,      offsets.data(),   test_case.heads, test_case.kv_heads,
            test_case.head_dim, test_case.causal, test_case.window};
  }

  /// In double, by the definition.
  struct Forward {
    std::vector<double> y, lse, maps;
  };
  Forward reference() const {
    Forward out{std::vector<double>(num_tokens * y_width), std::vector<double>(num_tokens * test_case.heads),
                std::vector<double>(map_floats)};
    std::vector<double> keep;
    if (test_case.dropout > 0) {
      const Philox random{kSeed, kStream};
      for (int64_t i = 0; i < map_floats; ++i) {
        keep.push_back(random.uniform(static_cast<uint64_t>(i)) >= test_case.dropout ? 1.0 / (1.0 - test_case.dropout)
                                                                                     : 0.0);
      }
    }
    const std::vector<double> wide(qkv.begin(), qkv.end());
    std::vector<double> lse(out.lse.size());
    limbeck::reference_attention_forward<double>(cpu_shape(), wide.data(), out.y.data(), lse.data(), out.maps.data(),
                                                 keep.empty() ? nullptr : keep.data());
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t h = 0; h < test_case.heads; ++h) out.lse[h * num_tokens + i] = lse[i * test_case.heads + h];
    }
    return out;
  }

  /// Of the CPU's op, which its own tests compare with finite differences.
  std::vector<double> cpu_gradient() const {
    limbeck::ThreadPool pool(1);
    limbeck::Arena arena;
    limbeck::Context context{pool, arena};
    std::vector<float> y(num_tokens * y_width), lse(num_tokens * test_case.heads), d_qkv(num_tokens * qkv_width);
    limbeck::attention_forward(context, cpu_shape(), qkv.data(), y.data(), lse.data(), nullptr, test_case.dropout,
                               kSeed, kStream);
    limbeck::attention_backward(context, cpu_shape(), qkv.data(), y.data(), lse.data(), d_y.data(), d_qkv.data(),
                                test_case.has_teacher ? teacher.data() : nullptr, kMapLossScale, test_case.dropout,
                                kSeed, kStream);
    return {d_qkv.begin(), d_qkv.end()};
  }

  Case test_case;
  std::vector<int32_t> offsets{0};
  std::vector<int64_t> map_offsets{0};
  int64_t longest = 0, num_tokens = 0, num_sequences = 0, qkv_width = 0, y_width = 0, map_floats = 0;
  std::vector<float> qkv, d_y, teacher;
};

/// A problem's arrays on the device, outputs poisoned.
constexpr float kInitialBias = 0.25f;

template <typename T>
struct DeviceProblem {
  explicit DeviceProblem(const Problem<T>& p, int poison = 0xFF)
      : problem(p),
        offsets(p.offsets),
        map_offsets(p.map_offsets),
        seed(std::vector<uint64_t>{kSeed}),
        qkv(converted<T>(p.qkv)),
        d_y(converted<T>(p.d_y)),
        teacher(p.teacher),
        y(p.num_tokens * p.y_width, poison),
        d_qkv(p.num_tokens * p.qkv_width, poison),
        lse(p.num_tokens * p.test_case.heads, poison),
        maps(p.map_floats, poison),
        d_bias(std::vector<float>(static_cast<size_t>(p.qkv_width), kInitialBias)) {}

  limbeck::cuda::AttentionShape shape() const {
    const Case& c = problem.test_case;
    return {problem.num_tokens, problem.num_sequences,
            problem.longest,    offsets.data(),
            map_offsets.data(), c.heads,
            c.kv_heads,         c.head_dim,
            c.causal,           c.window};
  }
  AttentionDropout dropout() const { return {problem.test_case.dropout, seed.data(), kStream}; }

  void forward() {
    limbeck::cuda::attention_forward(device.context, shape(), qkv.data(), y.data(), lse.data(), dropout());
  }
  void backward(limbeck::cuda::PendingSums* pending = nullptr) {
    limbeck::cuda::attention_backward(device.context, shape(), qkv.data(), y.data(), lse.data(), d_y.data(),
                                      d_qkv.data(), problem.test_case.has_teacher ? teacher.data() : nullptr,
                                      kMapLossScale, dropout(), d_bias.data(), pending);
  }
  void make_maps() { limbeck::cuda::attention_maps(device.context, shape(), qkv.data(), lse.data(), maps.data()); }

  const Problem<T>& problem;
  TestDevice device;
  DeviceArray<int32_t> offsets;
  DeviceArray<int64_t> map_offsets;
  DeviceArray<uint64_t> seed;
  DeviceArray<T> qkv, d_y;
  DeviceArray<float> teacher;
  DeviceArray<T> y, d_qkv;
  DeviceArray<float> lse, maps, d_bias;
};

double relative_error(const std::vector<float>& out, const std::vector<double>& reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    difference += (out[i] - reference[i]) * (out[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  return out.size() == reference.size() ? std::sqrt(difference / (norm + 1e-300)) : INFINITY;
}

/// Of one part of the columns of rows of `width`: queries, keys and values may differ much in their norms.
double column_error(const std::vector<float>& out, const std::vector<double>& reference, int64_t width, int64_t begin,
                    int64_t end) {
  std::vector<float> part;
  std::vector<double> reference_part;
  for (size_t row = 0; row * width < out.size(); ++row) {
    part.insert(part.end(), out.begin() + row * width + begin, out.begin() + row * width + end);
    reference_part.insert(reference_part.end(), reference.begin() + row * width + begin,
                          reference.begin() + row * width + end);
  }
  return relative_error(part, reference_part);
}

bool are_finite(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); });
}

template <typename T>
constexpr double kTolerance = std::is_same_v<T, float> ? 1e-5 : 1e-2;
/// Log-sum-exps and maps are never rounded; tensor cores cut the last bits of sums.
template <typename T>
constexpr double kUnrounded = std::is_same_v<T, float> ? 1e-5 : 5e-5;

template <typename T>
void check_forward(const Case& c) {
  const Problem<T> problem(c);
  DeviceProblem<T> run(problem);
  run.forward();
  run.make_maps();
  const auto expected = problem.reference();
  CHECK(relative_error(run.y.floats(), expected.y) < kTolerance<T>);
  CHECK(relative_error(run.lse.get(), expected.lse) < kUnrounded<T>);
  CHECK(relative_error(run.maps.get(), expected.maps) < kUnrounded<T>);
}

template <typename T>
void check_backward(const Case& c) {
  const Problem<T> problem(c);
  DeviceProblem<T> run(problem);
  run.forward();
  run.backward();
  const std::vector<double> expected = problem.cpu_gradient();
  const std::vector<float> d_qkv = run.d_qkv.floats();
  const int64_t keys = c.heads * c.head_dim, values = keys + c.kv_heads * c.head_dim;
  // A window of 1 has no gradient of scores but rounding errors.
  if (c.window != 1) {
    CHECK(column_error(d_qkv, expected, problem.qkv_width, 0, keys) < kTolerance<T>);
    CHECK(column_error(d_qkv, expected, problem.qkv_width, keys, values) < kTolerance<T>);
  }
  CHECK(column_error(d_qkv, expected, problem.qkv_width, values, problem.qkv_width) < kTolerance<T>);
  CHECK(are_finite(d_qkv));
  // The bias: what was there, and the sums of columns; of the keys' nothing.
  const std::vector<float> d_bias = run.d_bias.get();
  for (int64_t column = 0; column < problem.qkv_width; ++column) {
    double sum = 0, magnitude = 1;
    for (int64_t row = 0; row < problem.num_tokens && (column < keys || column >= values); ++row) {
      sum += d_qkv[row * problem.qkv_width + column];
      magnitude += std::fabs(d_qkv[row * problem.qkv_width + column]);
    }
    CHECK(std::fabs(d_bias[column] - (kInitialBias + sum)) < 1e-6 * magnitude);
  }
}

}  // namespace

TEST("cuda attention: y, log-sum-exp and maps are those of the reference, bf16") {
  for (const Case& c : kCases) check_forward<bf16>(c);
}

TEST("cuda attention of longer sequences: y, log-sum-exp and maps are those of the reference, bf16") {
  for (const Case& c : {Case{{450, 65, 1, 257}, 2, 1, 64, true},
                        {{321, 129}, 1, 1, 64, false},
                        {{500}, 1, 1, 64, true, 130},
                        {{400, 3, 190}, 2, 1, 128, true},
                        {{333}, 1, 1, 128, true, 150},
                        {{330, 20}, 1, 1, 96, false},
                        {{128, 128}, 2, 2, 64, true},
                        {{128, 65, 0, 1}, 2, 1, 128, false}}) {
    check_forward<bf16>(c);
  }
}

#ifdef LIMBECK_CUDA_EMULATED
TEST("cuda attention on a device without products of warpgroups, bf16") {
  limbeck::cuda::emulator::machine().major = 8;
  for (const Case& c : kCases) {
    check_forward<bf16>(c);
    check_backward<bf16>(c);
  }
  for (const Case& c : kLongCases) check_backward<bf16>(c);
  limbeck::cuda::emulator::machine().reset();
}
#endif

TEST("cuda attention: y, log-sum-exp and maps are those of the reference, fp32") {
  for (const Case& c : kCases) check_forward<float>(c);
}

TEST("cuda attention: gradients are those of the CPU, bf16") {
  for (const Case& c : kCases) check_backward<bf16>(c);
}

TEST("cuda attention: gradients are those of the CPU, fp32") {
  for (const Case& c : kCases) check_backward<float>(c);
}

TEST("cuda attention: gradients of longer sequences are those of the CPU, bf16") {
  for (const Case& c : kLongCases) check_backward<bf16>(c);
}

TEST("cuda attention: gradients of many short sequences beside a long one take memory by their tokens") {
  Case c{{300}, 2, 1, 64, true};
  for (int i = 0; i < 200; ++i) c.lengths.push_back(1 + i % 3);
  check_backward<bf16>(c);
  const Problem<bf16> problem(c);
  DeviceProblem<bf16> run(problem);
  run.forward();
  run.backward();
  // A row of qkv_width floats for every 32 tokens, and a shift for each head and token.
  const int64_t floats = problem.num_tokens * (problem.qkv_width / 32 + c.heads);
  CHECK(run.device.context.arena.peak_bytes() < static_cast<size_t>(floats) * sizeof(float) + 4096);
}

TEST("cuda attention: rows that are not aligned to 16 bytes") {
  const Problem<bf16> problem({{70, 20}, 2, 1, 64, true});
  DeviceProblem<bf16> run(problem);
  std::vector<bf16> shifted = converted<bf16>(problem.qkv);
  shifted.insert(shifted.begin(), limbeck::cuda::from_float<bf16>(1));
  const DeviceArray<bf16> qkv(shifted), d_qkv(static_cast<int64_t>(shifted.size()));
  limbeck::cuda::attention_forward(run.device.context, run.shape(), qkv.data() + 1, run.y.data(), run.lse.data(), {});
  limbeck::cuda::attention_backward<bf16>(run.device.context, run.shape(), qkv.data() + 1, run.y.data(), run.lse.data(),
                                          run.d_y.data(), d_qkv.data() + 1, nullptr, 0, {});
  CHECK(relative_error(run.y.floats(), problem.reference().y) < 1e-2);
  std::vector<float> gradient = d_qkv.floats();
  CHECK(std::isnan(gradient[0]));
  gradient.erase(gradient.begin());
  CHECK(relative_error(gradient, problem.cpu_gradient()) < 1e-2);
}

TEST("cuda attention stays exact for scores in the hundreds") {
  for (const bool causal : {true, false}) {
    const Problem<bf16> problem({{150, 11}, 1, 1, 64, causal}, 6.0f);
    DeviceProblem<bf16> run(problem);
    run.forward();
    run.backward();
    const auto expected = problem.reference();
    CHECK(relative_error(run.y.floats(), expected.y) < 1e-2);
    CHECK(relative_error(run.lse.get(), expected.lse) < 1e-5);
    CHECK(are_finite(run.d_qkv.floats()));
  }
}

TEST("cuda attention: rows past a sequence's end add nothing where all its scores are far below zero") {
  for (const int64_t kv_heads : {2, 1}) {
    const Problem<bf16> problem({{1, 1, 2, 1, 1, 2, 1, 1}, 2, kv_heads, 64, false}, 12.0f);
    DeviceProblem<bf16> run(problem);
    run.forward();
    run.backward();
    CHECK(are_finite(run.d_qkv.floats()));
  }
}

TEST("cuda attention gives the same bits again, whatever was in the outputs") {
  for (const Case& c : {Case{{130, 17, 70}, 4, 2, 64, true, 0, 0.25f, true},
                        {{140}, 2, 1, 128, true, 40},
                        {{400, 390}, 2, 1, 64, true}}) {
    const Problem<bf16> problem(c);
    DeviceProblem<bf16> one(problem, 0xFF), two(problem, 0x7B);
    one.forward();
    one.backward();
    one.make_maps();
    two.forward();
    limbeck::cuda::PendingSums pending;  // sums that wait for others are the same
    two.backward(&pending);
    two.make_maps();
    pending.finish(two.device.context);
    CHECK(same_bits(one.y.get(), two.y.get()));
    CHECK(same_bits(one.lse.get(), two.lse.get()));
    CHECK(same_bits(one.d_qkv.get(), two.d_qkv.get()));
    CHECK(same_bits(one.d_bias.get(), two.d_bias.get()));
    CHECK(same_bits(one.maps.get(), two.maps.get()));
  }
}

TEST("cuda attention: the map divergence is that of the CPU, and finite where a student underflowed") {
  const Problem<float> problem({{50, 1, 90, 7}, 3, 1, 8, true});
  DeviceProblem<float> run(problem);
  run.forward();
  run.make_maps();
  std::vector<float> student = run.maps.get();
  student[0] = 0;  // the teacher gives it mass
  run.maps.set(student);
  limbeck::ThreadPool pool(1);
  limbeck::Arena arena;
  limbeck::Context context{pool, arena};
  const double expected =
      limbeck::attention_map_divergence(context, problem.cpu_shape(), problem.teacher.data(), student.data());
  const DeviceArray<double> sum(std::vector<double>{3.0});
  limbeck::cuda::attention_map_divergence(run.device.context, run.teacher.data(), run.maps.data(), problem.map_floats,
                                          sum.data());
  CHECK(std::fabs(sum.get()[0] - 3.0 - expected) < 1e-5 * std::fabs(expected));
}

template <typename T>
void check_value_relation(const Case& c) {
  Problem<T> problem(c);
  const int64_t count = problem.num_tokens * problem.y_width;
  const std::vector<float> values = rounded<T>(random_floats(count, 8));
  limbeck::ThreadPool pool(1);
  limbeck::Arena arena;
  limbeck::Context context{pool, arena};
  std::vector<float> maps(problem.map_floats), d_values(count);
  limbeck::value_relation_forward(context, problem.cpu_shape(), values.data(), maps.data());
  limbeck::value_relation_backward(context, problem.cpu_shape(), values.data(), problem.teacher.data(), 0.3f,
                                   d_values.data());

  DeviceProblem<T> run(problem);
  const DeviceArray<T> device_values(converted<T>(values)), gradient(count);
  limbeck::cuda::value_relation_forward(run.device.context, run.shape(), device_values.data(), run.maps.data());
  limbeck::cuda::value_relation_backward(run.device.context, run.shape(), device_values.data(), run.maps.data(),
                                         run.teacher.data(), 0.3f, gradient.data());
  CHECK(relative_error(run.maps.get(), {maps.begin(), maps.end()}) < kUnrounded<T>);
  CHECK(relative_error(gradient.floats(), {d_values.begin(), d_values.end()}) < kTolerance<T>);
}

TEST("cuda value relations are those of the CPU, and their gradients") {
  for (const Case& c : {Case{{1, 3, 0, 70}, 2, 2, 24, true},
                        {{65, 40}, 3, 3, 5, false},
                        {{66}, 1, 1, 300, true},
                        {{90, 9}, 2, 2, 16, true, 20}}) {
    check_value_relation<float>(c);
    check_value_relation<bf16>(c);
  }
}

TEST("cuda attention refuses what the CPU refuses") {
  TestDevice device;
  const DeviceArray<int32_t> offsets(std::vector<int32_t>{0, 1});
  const DeviceArray<float> qkv(64), y(64), lse(8);
  const auto forward = [&](int64_t heads, int64_t kv_heads, bool causal, int64_t window, float dropout) {
    const limbeck::cuda::AttentionShape shape{1, 1, 1, offsets.data(), nullptr, heads, kv_heads, 4, causal, window};
    limbeck::cuda::attention_forward(device.context, shape, qkv.data(), y.data(), lse.data(), {dropout, nullptr, 0});
  };
  struct Case {
    int64_t heads, kv_heads;
    bool causal;
    int64_t window;
    float dropout;
  };
  for (const Case& c : {Case{3, 2, true, 0, 0.0f}, Case{2, 0, true, 0, 0.0f}, Case{2, 1, true, 0, 1.0f},
                        Case{2, 1, true, 0, -0.1f}, Case{2, 2, false, 2, 0.0f}, Case{2, 2, true, -1, 0.0f}}) {
    CHECK_ERROR("ERR_INVALID_ARGUMENT", forward(c.heads, c.kv_heads, c.causal, c.window, c.dropout));
  }
}
