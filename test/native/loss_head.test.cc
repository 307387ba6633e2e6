#include "ops/loss_head.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "core/error.h"
#include "core/rng.h"
#include "ops/reference_loss.h"
#include "test.h"

using namespace limbeck;

namespace {

// Sums of float32 logits over at most 25,000 columns; the gradients pass through one more product.
constexpr double kValueTolerance = 3e-6;
constexpr double kGradientTolerance = 3e-5;
constexpr double kDifferenceStep = 1e-5;
constexpr float kInitialGradient = 0.5f;  // d_table and d_bias are added to

enum class Source { kNone, kDense, kFactorised, kTopK };

struct Case {
  int64_t num_rows, hidden_size, vocab_size;
  Source source;
  LossHeadOptions options;  // ce_weight, kd_weight, temperature, fusion, gate
  bool with_bias;
  bool with_allowed;
  int64_t top_k;
  int64_t num_classes = 0;  // 0 = the teacher lists columns
};

const std::vector<Case> kCases = {
    {1, 1, 1, Source::kNone, {1, 0, 1, 1, 1}, false, false, 0},
    {5, 8, 17, Source::kNone, {1, 0, 1, 1, 1}, true, false, 0},
    {300, 12, 1000, Source::kNone, {0.7f, 0, 1, 1, 1}, false, false, 0},
    {6, 20, 2414, Source::kNone, {1, 0, 1, 1, 1}, true, true, 0},
    {5, 3, 25000, Source::kNone, {1, 0, 1, 1, 1}, true, false, 0},  // more than a cache is thought to hold
    {3, 4, 17, Source::kNone, {1, 0, 1, 1, 1}, false, true, 0},
    {1, 3, 1, Source::kDense, {1, 1, 2, 1, 1}, false, false, 0},
    {4, 8, 17, Source::kDense, {0, 1, 1, 1, 1}, true, false, 0},
    {5, 8, 1000, Source::kDense, {0.4f, 0.6f, 2, 1, 1}, false, false, 0},
    {7, 8, 1000, Source::kDense, {0.4f, 0.6f, 3, 0.3f, 0.2f}, true, false, 0},
    {9, 6, 17, Source::kDense, {1, 2, 1, 0.5f, 0}, false, false, 0},
    {140, 16, 2414, Source::kFactorised, {0.5f, 0.5f, 2, 1, 0.1f}, true, false, 0},
    {8, 6, 17, Source::kFactorised, {0.5f, 0.5f, 1, 1, 1}, false, false, 0},
    {6, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 1}, true, false, 4},
    {9, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 0.6f, 0.3f}, false, false, 1},
    {20, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 0.3f}, false, false, 10},
    {5, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 1}, false, false, 17},
    {6, 8, 1000, Source::kTopK, {0, 1, 2, 1, 0.5f}, false, false, 20},
    {6, 8, 2414, Source::kTopK, {1, 1, 4, 0.5f, 1}, true, false, 10},
    {6, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 1}, true, false, 4, 7},
    {9, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 0.6f, 0.3f}, false, false, 1, 2},
    {20, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 0.3f}, false, false, 5, 5},
    {20, 6, 17, Source::kTopK, {0.5f, 0.5f, 1, 1, 0.3f}, false, false, 6, 9},
    {6, 8, 1000, Source::kTopK, {0, 1, 2, 1, 0.5f}, false, false, 20, 300},
    {6, 8, 2414, Source::kTopK, {1, 1, 1, 1, 1}, true, false, 10, 2414},
};

std::vector<float> normals(size_t count, uint64_t stream, float magnitude = 1) {
  const Philox random{3, stream};
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = magnitude * random.normal(i);
  return out;
}

struct Problem {
  explicit Problem(const Case& c) : test_case(c) {
    const auto [rows, width, vocab] = std::tuple{c.num_rows, c.hidden_size, c.vocab_size};
    hidden = normals(static_cast<size_t>(rows * width), 1);
    table = normals(static_cast<size_t>(vocab * width), 2);
    if (c.with_bias) bias = normals(static_cast<size_t>(vocab), 3);
    for (int64_t r = 0; r < rows; ++r) labels.push_back(static_cast<int32_t>((r * 7 + vocab - 1) % vocab));
    for (int64_t v = 0; c.with_allowed && v < vocab; ++v) allowed.push_back(v % 3 == 0);

    if (c.source == Source::kFactorised) {
      teacher_hidden = normals(static_cast<size_t>(rows * kTeacherWidth), 4);
      teacher_table = normals(static_cast<size_t>(vocab * kTeacherWidth), 5, 0.7f);
      teacher_bias = normals(static_cast<size_t>(vocab), 6);
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<double> h(teacher_hidden.begin() + r * kTeacherWidth,
                                    teacher_hidden.begin() + (r + 1) * kTeacherWidth);
        const std::vector<double> t(teacher_table.begin(), teacher_table.end());
        const std::vector<double> b(teacher_bias.begin(), teacher_bias.end());
        const auto z = reference_logits(h.data(), t.data(), b.data(), kTeacherWidth, vocab);
        dense.insert(dense.end(), z.begin(), z.end());
      }
    } else if (c.source != Source::kNone) {
      const auto values = normals(static_cast<size_t>(rows * vocab), 7, 2);
      dense.assign(values.begin(), values.end());
    }
    if (c.source == Source::kTopK) take_top_k();
  }

  void take_top_k() {
    // Uneven sets of columns, none empty.
    const int64_t C = test_case.num_classes;
    for (int64_t v = 0; C > 0 && v < test_case.vocab_size; ++v)
      classes.push_back(static_cast<int32_t>(v < C ? v : v * v % 11 % C));
    for (int64_t r = 0; r < test_case.num_rows; ++r) {
      std::vector<double> row(dense.begin() + r * test_case.vocab_size, dense.begin() + (r + 1) * test_case.vocab_size);
      if (C > 0) row.resize(static_cast<size_t>(C));  // the teacher's own, over the classes
      std::vector<int32_t> order(row.size());
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
      for (int64_t i = 0; i < test_case.top_k; ++i) {
        indices.push_back(order[i]);
        values.push_back(static_cast<float>(row[order[i]]));
      }
      log_sum_exp.push_back(static_cast<float>(reference_log_sum_exp(row)));
    }
  }

  TeacherLogits teacher() const {
    TeacherLogits out;
    if (test_case.source == Source::kDense) {
      out.dense = dense_f32.data();
      out.dense_rows = dense_rows.data();
    }
    if (test_case.source == Source::kFactorised) {
      out.hidden = teacher_hidden.data();
      out.table = teacher_table.data();
      out.bias = teacher_bias.data();
      out.teacher_hidden_size = kTeacherWidth;
    }
    if (test_case.source == Source::kTopK) {
      out.top_k_indices = indices.data();
      out.top_k_values = values.data();
      out.log_sum_exp = log_sum_exp.data();
      out.top_k = test_case.top_k;
      out.classes = classes.empty() ? nullptr : classes.data();
      out.num_classes = test_case.num_classes;
    }
    return out;
  }

  /// Runs the op on poisoned outputs; gradients only when asked.
  LossHeadResult run(int num_threads, bool with_gradient = true) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    // The teacher's rows lie in reverse, with a row of NaN between each and the next, which nobody may read.
    dense_rows.clear();
    dense_f32.assign(2 * dense.size(), std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; !dense.empty() && r < test_case.num_rows; ++r) {
      dense_rows.push_back(2 * (test_case.num_rows - 1 - r));
      std::copy_n(dense.begin() + r * test_case.vocab_size, test_case.vocab_size,
                  dense_f32.begin() + dense_rows.back() * test_case.vocab_size);
    }
    d_hidden.assign(hidden.size(), std::numeric_limits<float>::quiet_NaN());
    d_table.assign(table.size(), kInitialGradient);
    d_bias.assign(bias.size(), kInitialGradient);
    return loss_head(context, hidden.data(), table.data(), bias.empty() ? nullptr : bias.data(), labels.data(),
                     teacher(), test_case.options, kRowScale, allowed.empty() ? nullptr : allowed.data(),
                     with_gradient ? d_hidden.data() : nullptr, with_gradient ? d_table.data() : nullptr,
                     with_gradient && !bias.empty() ? d_bias.data() : nullptr, test_case.num_rows,
                     test_case.hidden_size, test_case.vocab_size);
  }

  /// Only rows begin … end − 1, of a problem whose teacher is not dense.
  void keep_rows(int64_t begin, int64_t end) {
    const auto keep = [&](auto& values, int64_t width) {
      if (!values.empty()) values = {values.begin() + begin * width, values.begin() + end * width};
    };
    test_case.num_rows = end - begin;
    keep(hidden, test_case.hidden_size);
    keep(labels, 1);
    keep(teacher_hidden, kTeacherWidth);
    keep(indices, test_case.top_k);
    keep(values, test_case.top_k);
    keep(log_sum_exp, 1);
    dense.clear();  // the values that lists were taken from
  }

  static constexpr int64_t kTeacherWidth = 10;
  static constexpr double kRowScale = 0.25;
  Case test_case;
  std::vector<float> hidden, table, bias, teacher_hidden, teacher_table, teacher_bias, values, log_sum_exp, dense_f32;
  std::vector<double> dense;
  std::vector<int64_t> dense_rows;
  std::vector<int32_t> labels, indices, classes;
  std::vector<uint8_t> allowed;
  std::vector<float> d_hidden, d_table, d_bias;
};

/// The reference over one problem; the soft labels and gates are those of the starting point.
struct Reference {
  explicit Reference(const Problem& p)
      : problem(p),
        hidden(p.hidden.begin(), p.hidden.end()),
        table(p.table.begin(), p.table.end()),
        bias(p.bias.begin(), p.bias.end()),
        dense(p.dense.begin(), p.dense.end()),
        values(p.values.begin(), p.values.end()),
        log_sum_exp(p.log_sum_exp.begin(), p.log_sum_exp.end()) {
    if (p.test_case.source == Source::kTopK) {
      teacher.top_k_indices = p.indices.data();
      teacher.top_k_values = values.data();
      teacher.log_sum_exp = log_sum_exp.data();
      teacher.top_k = p.test_case.top_k;
      teacher.classes = p.classes.empty() ? nullptr : p.classes.data();
      teacher.num_classes = p.test_case.num_classes;
    } else if (p.test_case.source != Source::kNone) {
      teacher.dense = dense.data();
    }
    const LossHeadOptions& o = p.test_case.options;
    for (int64_t r = 0; has_teacher() && r < p.test_case.num_rows; ++r) {
      soft.push_back(
          reference_soft_labels<double>(logits(r), teacher, r, p.labels[r], o.temperature, o.fusion, o.gate));
    }
  }

  bool has_teacher() const { return problem.test_case.source != Source::kNone; }

  std::vector<double> logits(int64_t row) const {
    const Case& c = problem.test_case;
    return reference_logits(hidden.data() + row * c.hidden_size, table.data(), bias.empty() ? nullptr : bias.data(),
                            c.hidden_size, c.vocab_size);
  }

  /// {cross-entropy, distillation} of one row at the current parameters.
  LossHeadResult row_value(int64_t row) const {
    const std::vector<double> z = logits(row);
    LossHeadResult out;
    out.ce_sum =
        reference_cross_entropy(z, problem.labels[row], problem.allowed.empty() ? nullptr : problem.allowed.data());
    if (has_teacher()) {
      out.kd_sum = reference_distillation(z, teacher, row, soft[row],
                                          static_cast<double>(problem.test_case.options.temperature));
    }
    return out;
  }

  LossHeadResult value(int64_t first, int64_t last) const {
    LossHeadResult sum;
    for (int64_t r = first; r < last; ++r) {
      const LossHeadResult row = row_value(r);
      sum.ce_sum += row.ce_sum;
      sum.kd_sum += row.kd_sum;
    }
    return sum;
  }

  double objective(int64_t first, int64_t last) const {
    const LossHeadResult sum = value(first, last);
    const LossHeadOptions& o = problem.test_case.options;
    return Problem::kRowScale * (o.ce_weight * sum.ce_sum + o.kd_weight * sum.kd_sum);
  }

  double derivative(double& parameter, int64_t first, int64_t last) const {
    const double original = parameter;
    parameter = original + kDifferenceStep;
    const double above = objective(first, last);
    parameter = original - kDifferenceStep;
    const double below = objective(first, last);
    parameter = original;
    return (above - below) / (2 * kDifferenceStep);
  }

  const Problem& problem;
  std::vector<double> hidden, table, bias, dense, values, log_sum_exp;
  ReferenceTeacher<double> teacher;
  std::vector<ReferenceSoftLabels<double>> soft;
};

double relative_error(const std::vector<double>& out, const std::vector<double>& expected, double floor) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    difference += (out[i] - expected[i]) * (out[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference) / (std::sqrt(norm) + floor);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <typename Function>
std::string code_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

}  // namespace

TEST("loss head values match the reference for every teacher source") {
  for_each_isa([] {
    for (const Case& c : kCases) {
      Problem problem(c);
      const LossHeadResult result = problem.run(2);
      const LossHeadResult expected = Reference(problem).value(0, c.num_rows);
      const double rows = static_cast<double>(c.num_rows);
      CHECK(std::fabs(result.ce_sum - expected.ce_sum) <= kValueTolerance * (expected.ce_sum + rows));
      CHECK(std::fabs(result.kd_sum - expected.kd_sum) <= kValueTolerance * (expected.kd_sum + rows));
    }
  });
}

TEST("loss head gradients match central differences of the reference") {
  for_each_isa([] {
    for (const Case& c : kCases) {
      Problem problem(c);
      problem.run(2);
      Reference reference(problem);
      const size_t hidden_step = problem.hidden.size() / 40 + 1, table_step = problem.table.size() / 40 + 1;
      std::vector<double> gradient, expected;
      for (size_t i = 0; i < problem.hidden.size(); i += hidden_step) {
        const int64_t row = static_cast<int64_t>(i) / c.hidden_size;
        gradient.push_back(problem.d_hidden[i]);
        expected.push_back(reference.derivative(reference.hidden[i], row, row + 1));
      }
      CHECK(relative_error(gradient, expected, 1e-3) < kGradientTolerance);
      if (c.num_rows > 20) continue;  // a table entry touches every row: too slow a reference

      gradient.clear();
      expected.clear();
      std::vector<size_t> entries;
      for (size_t i = 0; i < problem.table.size(); i += table_step) entries.push_back(i);
      // Random columns have little mass; the labels' and the listed ones have most.
      for (int32_t label : problem.labels) entries.push_back(static_cast<size_t>(label * c.hidden_size));
      for (size_t i = 0; i < problem.indices.size() && i < 8; ++i) {
        entries.push_back(static_cast<size_t>(problem.indices[i] * c.hidden_size));
      }
      for (size_t i : entries) {
        gradient.push_back(problem.d_table[i] - kInitialGradient);
        expected.push_back(reference.derivative(reference.table[i], 0, c.num_rows));
      }
      CHECK(relative_error(gradient, expected, 1e-2) < kGradientTolerance);

      gradient.clear();
      expected.clear();
      for (size_t i = 0; i < problem.bias.size(); i += problem.bias.size() / 40 + 1) {
        gradient.push_back(problem.d_bias[i] - kInitialGradient);
        expected.push_back(reference.derivative(reference.bias[i], 0, c.num_rows));
      }
      CHECK(relative_error(gradient, expected, 1e-2) < kGradientTolerance);
    }
  });
}

TEST("the loss head gives the same bits on one and two threads") {
  for (const Case& c : kCases) {
    Problem one(c), two(c);
    const LossHeadResult a = one.run(1), b = two.run(2);
    CHECK(a.ce_sum == b.ce_sum && a.kd_sum == b.kd_sum);
    CHECK(same_bits(one.d_hidden, two.d_hidden));
    CHECK(same_bits(one.d_table, two.d_table));
    CHECK(same_bits(one.d_bias, two.d_bias));
  }
}

TEST("the loss head of many rows, chunk by chunk, is the sum over parts of them") {
  const std::vector<Case> cases = {
      {300, 4, 20000, Source::kNone, {1, 0, 1, 1, 1}, true, false, 0},  // the table stays in the cache
      {300, 4, 20000, Source::kTopK, {0.5f, 0.5f, 1, 1, 1}, false, false, 3},
      {1100, 4, 25000, Source::kNone, {1, 0, 1, 1, 1}, true, false, 0},  // it does not
      {1100, 4, 2000, Source::kFactorised, {0.5f, 0.5f, 2, 1, 1}, false, false, 0},
  };
  for (const Case& c : cases) {
    Problem problem(c);
    const LossHeadResult whole = problem.run(2);
    const std::vector<float> d_hidden = problem.d_hidden, d_table = problem.d_table, d_bias = problem.d_bias;
    double ce_sum = 0, kd_sum = 0;
    std::vector<double> expected_d_table(d_table.size(), kInitialGradient),
        expected_d_bias(d_bias.size(), kInitialGradient);
    for (int64_t begin = 0; begin < c.num_rows; begin += 100) {
      Problem part = problem;
      part.keep_rows(begin, std::min(begin + 100, c.num_rows));
      const LossHeadResult result = part.run(1);
      ce_sum += result.ce_sum;
      kd_sum += result.kd_sum;
      CHECK(same_bits(part.d_hidden, {d_hidden.begin() + begin * c.hidden_size,
                                      d_hidden.begin() + (begin + part.test_case.num_rows) * c.hidden_size}));
      const auto add = [](std::vector<double>& sums, const std::vector<float>& values) {
        for (size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(values[i] - kInitialGradient);
      };
      add(expected_d_table, part.d_table);
      add(expected_d_bias, part.d_bias);
    }
    CHECK(std::fabs(whole.ce_sum - ce_sum) < 1e-9 * ce_sum && std::fabs(whole.kd_sum - kd_sum) <= 1e-9 * kd_sum);
    CHECK(relative_error({d_table.begin(), d_table.end()}, expected_d_table, 0) < 1e-6);
    CHECK(relative_error({d_bias.begin(), d_bias.end()}, expected_d_bias, 1e-9) < 1e-6);
  }
}

TEST("the value alone equals the value with gradients") {
  for (const Case& c : kCases) {
    Problem problem(c);
    const LossHeadResult with = problem.run(1), without = problem.run(1, false);
    CHECK(with.ce_sum == without.ce_sum && with.kd_sum == without.kd_sum);
    CHECK(std::isnan(problem.d_hidden[0]));
  }
}

TEST("a column that is not allowed gets no gradient unless it is the label") {
  Problem problem({4, 6, 40, Source::kNone, {1, 0, 1, 1, 1}, true, true, 0});
  problem.run(1);
  for (int64_t v = 0; v < 40; ++v) {
    bool is_label = false;
    for (int32_t label : problem.labels) is_label = is_label || label == v;
    const bool is_untouched = problem.d_bias[v] == kInitialGradient;
    CHECK(is_untouched == (!problem.allowed[v] && !is_label));
  }
}

TEST("top-k over the whole vocabulary equals the dense teacher, also at another temperature") {
  for (const float temperature : {1.0f, 2.0f}) {
    Problem top_k({6, 6, 17, Source::kTopK, {0.5f, 0.5f, temperature, 0.7f, 1}, true, false, 17});
    Problem dense({6, 6, 17, Source::kDense, {0.5f, 0.5f, temperature, 0.7f, 1}, true, false, 0});
    const LossHeadResult a = top_k.run(1), b = dense.run(1);
    CHECK(std::fabs(a.kd_sum - b.kd_sum) < 1e-5 * b.kd_sum);
    double largest = 0;
    for (size_t i = 0; i < top_k.d_hidden.size(); ++i) {
      largest = std::fmax(largest, std::fabs(top_k.d_hidden[i] - dense.d_hidden[i]));
    }
    CHECK(largest < 1e-5);
  }
}

TEST("a teacher that agrees with the student costs nothing and pulls nowhere") {
  Problem problem({5, 8, 300, Source::kDense, {0, 1, 2, 1, 1}, true, false, 0});
  const Reference reference(problem);
  for (int64_t r = 0; r < 5; ++r) {
    const auto z = reference.logits(r);
    std::copy(z.begin(), z.end(), problem.dense.begin() + r * 300);
  }
  const LossHeadResult result = problem.run(1);
  CHECK(std::fabs(result.kd_sum) < 1e-5);
  double largest = 0;
  for (float value : problem.d_hidden) largest = std::fmax(largest, std::fabs(value));
  CHECK(largest < 1e-5);
}

TEST("with both weights zero the gradient is zero and nothing is computed") {
  Problem problem({5, 8, 17, Source::kDense, {0, 0, 1, 1, 1}, true, false, 0});
  const LossHeadResult result = problem.run(1);
  CHECK(result.ce_sum == 0 && result.kd_sum == 0);
  for (float value : problem.d_hidden) CHECK(value == 0.0f);
  for (float value : problem.d_table) CHECK(value == kInitialGradient);
}

TEST("logits in the thousands do not overflow") {
  for_each_isa([] {
    Problem problem({4, 8, 100, Source::kDense, {1, 1, 2, 1, 1}, false, false, 0});
    for (float& value : problem.hidden) value *= 1000;
    const LossHeadResult result = problem.run(1);
    const LossHeadResult expected = Reference(problem).value(0, 4);
    CHECK(std::fabs(result.ce_sum - expected.ce_sum) < 1e-5 * expected.ce_sum);
    CHECK(std::fabs(result.kd_sum - expected.kd_sum) < 1e-5 * expected.kd_sum);
  });
}

TEST("rows that list fewer teacher logits are those of a shorter list, and rows that list none are not distilled") {
  for_each_isa([] {
    for (const float temperature : {1.0f, 2.0f}) {
      const Case c{9, 6, 17, Source::kTopK, {0.5f, 0.7f, temperature, 0.6f, 0.3f}, true, false, 4};
      const Problem whole(c);
      Problem problem(c);
      for (int64_t r = 0; r < c.num_rows; ++r) {
        for (int64_t i = r % 5; i < c.top_k; ++i) problem.indices[r * c.top_k + i] = -1;
      }
      const LossHeadResult sums = problem.run(2);
      std::vector<float> d_table(problem.table.size(), kInitialGradient);
      double ce = 0, kd = 0;
      for (int64_t r = 0; r < c.num_rows; ++r) {
        const int64_t count = r % 5;
        TeacherLogits teacher;
        if (count > 0) {
          teacher.top_k = count;
          teacher.top_k_indices = whole.indices.data() + r * c.top_k;
          teacher.top_k_values = whole.values.data() + r * c.top_k;
          teacher.log_sum_exp = whole.log_sum_exp.data() + r;
        }
        ThreadPool pool(1);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> d_hidden(6, std::numeric_limits<float>::quiet_NaN()), d_bias(17);
        const LossHeadResult row = loss_head(
            context, whole.hidden.data() + r * 6, whole.table.data(), whole.bias.data(), whole.labels.data() + r,
            teacher, c.options, Problem::kRowScale, nullptr, d_hidden.data(), d_table.data(), d_bias.data(), 1, 6, 17);
        ce += row.ce_sum;
        kd += row.kd_sum;
        CHECK((row.kd_sum > 0) == (count > (temperature == 1.0f ? 0 : 1)));  // one class alone says nothing
        for (int64_t j = 0; j < 6; ++j) CHECK(std::fabs(d_hidden[j] - problem.d_hidden[r * 6 + j]) < 1e-6);
      }
      CHECK(std::fabs(sums.ce_sum - ce) < 1e-5 && std::fabs(sums.kd_sum - kd) < 1e-5);
      for (size_t i = 0; i < d_table.size(); ++i) CHECK(std::fabs(d_table[i] - problem.d_table[i]) < 1e-5);
    }
  });
}

TEST("a NaN in the hidden state shows in the loss") {
  for_each_isa([] {
    Problem problem({3, 8, 100, Source::kNone, {1, 0, 1, 1, 1}, false, false, 0});
    problem.hidden[9] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(problem.run(1).ce_sum));
  });
}

TEST("the loss head refuses labels and top-k indices out of range, repeats, and sampled softmax with a teacher") {
  const Case c{3, 4, 17, Source::kTopK, {1, 1, 1, 1, 1}, false, false, 3};
  for (const int32_t label : {-1, 17}) {
    Problem problem(c);
    problem.labels[1] = label;
    CHECK(code_of([&] { problem.run(1); }) == "ERR_INVALID_ARGUMENT");
  }
  for (const int32_t index : {-1, 17}) {
    Problem problem(c);
    problem.indices[4] = index;
    CHECK(code_of([&] { problem.run(1); }) == "ERR_INVALID_ARGUMENT");
  }
  Problem after_the_end(c);
  after_the_end.indices[1] = -1;
  CHECK(code_of([&] { after_the_end.run(1); }) == "ERR_INVALID_ARGUMENT");
  Problem outside(Case{3, 4, 17, Source::kTopK, {1, 1, 1, 1, 1}, false, false, 3, 5});
  outside.classes[7] = 5;
  CHECK(code_of([&] { outside.run(1); }) == "ERR_INVALID_ARGUMENT");
  Problem repeated(c);
  repeated.indices[1] = repeated.indices[0];
  CHECK(code_of([&] { repeated.run(1); }) == "ERR_INVALID_ARGUMENT");

  Problem sampled(c);
  sampled.allowed.assign(17, 1);
  CHECK(code_of([&] { sampled.run(1); }) == "ERR_INVALID_ARGUMENT");

  Problem cold(c);
  cold.test_case.options.temperature = 0;
  CHECK(code_of([&] { cold.run(1); }) == "ERR_INVALID_ARGUMENT");
}
