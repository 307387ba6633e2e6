#include "cuda/loss_head.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "cuda/sampled_loss.h"
#include "device_test.h"
#include "ops/reference_loss.h"

using namespace limbeck::cuda;
using namespace limbeck_test;
using limbeck::ReferenceSoftLabels;
using limbeck::ReferenceTeacher;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInitialGradient = 0x1p-10f;  // what d_table and d_bias are added to
constexpr double kInitialSum = 3;
constexpr float kRowScale = 0.25f;
constexpr int64_t kTeacherWidth = 10;

enum class Source { kNone, kDense, kDenseByRow, kFactorised, kTopK };

struct Case {
  int64_t num_rows, hidden_size, vocab_size;
  Source source = Source::kNone;
  LossHeadOptions options = {};  // ce_weight, kd_weight, temperature, fusion, gate
  bool with_bias = true;
  int64_t top_k = 0;
  bool with_allowed = false;
  int64_t chunk_rows = 0;
  float scale = 0;  // of hidden; 0: logits of order 1
};

int64_t padded(int64_t vocab_size) { return (vocab_size + 63) / 64 * 64; }

/// What a matrix of logits is made of, as T holds it.
template <typename T>
struct Projection {
  Projection(int64_t num_rows, int64_t width, int64_t vocab_size, bool with_bias, uint64_t seed, float scale)
      : width(width), vocab_size(vocab_size) {
    hidden = rounded<T>(random_floats(num_rows * width, seed, scale / std::sqrt(static_cast<float>(width))));
    table = rounded<T>(random_floats(vocab_size * width, seed + 1));
    if (with_bias) bias = rounded<T>(random_floats(vocab_size, seed + 2));
  }

  /// Row of logits as the product writes it.
  std::vector<double> logits(int64_t row) const {
    const std::vector<double> h(hidden.begin() + row * width, hidden.begin() + (row + 1) * width);
    const std::vector<double> t(table.begin(), table.end()), b(bias.begin(), bias.end());
    std::vector<double> z =
        limbeck::reference_logits(h.data(), t.data(), b.empty() ? nullptr : b.data(), width, vocab_size);
    if (sizeof(T) == 2) {
      for (double& value : z) value = rounded<T>(static_cast<float>(value));
    }
    return z;
  }

  std::vector<T> padded_table() const {
    std::vector<float> rows = table;
    rows.resize(static_cast<size_t>(padded(vocab_size) * width), 0.0f);
    return converted<T>(rows);
  }
  /// Nobody may look at the bias of a pad column.
  std::vector<T> padded_bias() const {
    std::vector<float> values = bias;
    if (!bias.empty()) values.resize(static_cast<size_t>(padded(vocab_size)), kNaN);
    return converted<T>(values);
  }

  int64_t width, vocab_size;
  std::vector<float> hidden, table, bias;
};

struct Result {
  std::vector<float> d_hidden, d_table, d_bias;
  double ce_sum, kd_sum;
};

/// The rows of a table's gradient that have columns; those beyond must be `pad`, or NaN in the columns that are.
std::vector<float> without_pads(std::vector<float> d_table, int64_t vocab_size, int64_t width, float pad) {
  const auto end = static_cast<size_t>(vocab_size * width);
  for (size_t i = end; i < d_table.size(); ++i) {
    CHECK(d_table[i] == pad || std::isnan(d_table[i % static_cast<size_t>(width)]));
  }
  d_table.resize(end);
  return d_table;
}

template <typename T>
struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        student(c.num_rows, c.hidden_size, c.vocab_size, c.with_bias, 10, c.scale > 0 ? c.scale : 1.0f),
        teacher(c.num_rows, kTeacherWidth, c.vocab_size, true, 20, c.scale > 0 ? c.scale : 2.0f) {
    for (int64_t r = 0; r < c.num_rows; ++r)
      labels.push_back(static_cast<int32_t>((r * 7 + c.vocab_size - 1) % c.vocab_size));
    for (int64_t v = 0; c.with_allowed && v < c.vocab_size; ++v) allowed.push_back(v % 3 == 0);
    for (int64_t r = 0; c.source != Source::kNone && r < c.num_rows; ++r) {
      std::vector<double> z = teacher.logits(r);
      if (c.source != Source::kFactorised) {
        for (double& value : z) value = static_cast<float>(value);
      }
      teacher_logits.insert(teacher_logits.end(), z.begin(), z.end());
      if (c.source != Source::kTopK) continue;
      std::vector<int32_t> order(z.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
      for (int64_t i = 0; i < c.top_k; ++i) {
        indices.push_back(order[i]);
        values.push_back(static_cast<float>(z[order[i]]));
      }
      log_sum_exp.push_back(static_cast<float>(limbeck::reference_log_sum_exp(z)));
    }
  }

  /// With accumulates_table, d_table includes kInitialGradient; otherwise it was NaN before.
  Result run(bool with_gradient = true, bool accumulates_table = true) const {
    TestDevice device;
    const DeviceArray<T> hidden(converted<T>(student.hidden)), table(student.padded_table()),
        bias(student.padded_bias());
    const DeviceArray<int32_t> device_labels(labels);
    const DeviceArray<uint8_t> device_allowed(allowed);
    // The teacher's rows lie in reverse, with a row of NaN between each and the next, which nobody may read.
    std::vector<float> dense;
    std::vector<int32_t> dense_rows;
    if (c.source == Source::kDense) dense.assign(teacher_logits.begin(), teacher_logits.end());
    if (c.source == Source::kDenseByRow) {
      dense.assign(teacher_logits.size() * 2 - static_cast<size_t>(c.vocab_size), kNaN);
      for (int64_t r = 0; r < c.num_rows; ++r) {
        dense_rows.push_back(static_cast<int32_t>(2 * (c.num_rows - 1 - r)));
        std::copy_n(teacher_logits.begin() + r * c.vocab_size, c.vocab_size,
                    dense.begin() + dense_rows.back() * c.vocab_size);
      }
    }
    const DeviceArray<float> device_dense(dense), device_values(values), device_lse(log_sum_exp);
    const DeviceArray<int32_t> device_rows(dense_rows), device_indices(indices);
    const DeviceArray<T> teacher_hidden(converted<T>(teacher.hidden)), teacher_table(teacher.padded_table()),
        teacher_bias(teacher.padded_bias());
    TeacherLogits<T> source;
    if (!dense.empty()) source.dense = device_dense.data();
    if (!dense_rows.empty()) source.dense_rows = device_rows.data();
    if (c.source == Source::kFactorised) {
      source.hidden = teacher_hidden.data();
      source.table = teacher_table.data();
      source.bias = teacher_bias.data();
      source.hidden_size = kTeacherWidth;
    }
    if (c.source == Source::kTopK) {
      source.top_k_indices = device_indices.data();
      source.top_k_values = device_values.data();
      source.log_sum_exp = device_lse.data();
      source.top_k = c.top_k;
    }
    DeviceArray<T> d_hidden(c.num_rows * c.hidden_size);
    const auto table_size = static_cast<size_t>(padded(c.vocab_size) * c.hidden_size);
    DeviceArray<float> d_table(std::vector<float>(table_size, accumulates_table ? kInitialGradient : kNaN));
    DeviceArray<float> d_bias(std::vector<float>(static_cast<size_t>(c.vocab_size), kInitialGradient));
    DeviceArray<double> sums(std::vector<double>(2, kInitialSum));
    const OutputTable<T> output{table.data(), c.with_bias ? bias.data() : nullptr, c.vocab_size, padded(c.vocab_size)};
    loss_head<T>(device.context, hidden.data(), output, device_labels.data(), source, c.options, kRowScale,
                 c.with_allowed ? device_allowed.data() : nullptr, with_gradient ? d_hidden.data() : nullptr,
                 with_gradient ? d_table.data() : nullptr, accumulates_table,
                 with_gradient && c.with_bias ? d_bias.data() : nullptr, sums.data(), c.num_rows, c.hidden_size,
                 c.chunk_rows);
    const std::vector<double> both = sums.get();
    return {d_hidden.floats(),
            without_pads(d_table.get(), c.vocab_size, c.hidden_size, accumulates_table ? kInitialGradient : 0.0f),
            d_bias.get(), both[0] - kInitialSum, both[1] - kInitialSum};
  }

  Case c;
  Projection<T> student, teacher;
  std::vector<int32_t> labels, indices;
  std::vector<uint8_t> allowed;
  std::vector<double> teacher_logits;
  std::vector<float> values, log_sum_exp;
};

/// Loss of one row of logits, and its gradient.
struct RowReference {
  template <typename T>
  RowReference(const Problem<T>& p, int64_t row) : c(p.c), row(row), label(p.labels[row]) {
    allowed = p.allowed.empty() ? nullptr : p.allowed.data();
    if (c.source == Source::kTopK) {
      values.assign(p.values.begin(), p.values.end());
      log_sum_exp.assign(p.log_sum_exp.begin(), p.log_sum_exp.end());
      teacher.top_k_indices = p.indices.data();
      teacher.top_k_values = values.data();
      teacher.log_sum_exp = log_sum_exp.data();
      teacher.top_k = c.top_k;
    } else if (c.source != Source::kNone) {
      teacher.dense = p.teacher_logits.data();
    }
    z = p.student.logits(row);
    if (has_teacher()) {
      soft = limbeck::reference_soft_labels<double>(z, teacher, row, label, c.options.temperature, c.options.fusion,
                                                    c.options.gate);
    }
  }

  bool has_teacher() const { return c.source != Source::kNone; }
  double cross_entropy(const std::vector<double>& x) const {
    return limbeck::reference_cross_entropy(x, label, allowed);
  }
  double distillation(const std::vector<double>& x) const {
    return has_teacher() ? limbeck::reference_distillation<double>(x, teacher, row, soft, c.options.temperature) : 0;
  }
  double objective(const std::vector<double>& x) const {
    return kRowScale * (c.options.ce_weight * cross_entropy(x) + c.options.kd_weight * distillation(x));
  }

  std::vector<double> gradient() const {
    const double tau = c.options.temperature;
    std::vector<double> g(z.size(), 0);
    std::vector<double> taking_part = z;
    for (size_t v = 0; v < z.size(); ++v) {
      if (allowed && !allowed[v] && static_cast<int32_t>(v) != label) taking_part[v] = -HUGE_VAL;
    }
    const std::vector<double> hard = limbeck::reference_softmax(taking_part);
    for (size_t v = 0; v < z.size(); ++v) g[v] += c.options.ce_weight * hard[v];
    g[label] -= c.options.ce_weight;
    if (has_teacher()) {
      const double kd = c.options.kd_weight * soft.gate * tau;
      const std::vector<double> student =
          limbeck::reference_softmax(limbeck::reference_class_logits(z, teacher, row, tau));
      if (teacher.dense) {
        for (size_t v = 0; v < z.size(); ++v) g[v] += kd * (student[v] - soft.soft[v]);
      } else {
        const int32_t* indices = teacher.top_k_indices + row * c.top_k;
        std::vector<double> rest = z;
        for (int64_t i = 0; i < c.top_k; ++i) {
          rest[indices[i]] = -HUGE_VAL;
          g[indices[i]] += kd * (student[i] - soft.soft[i]);
        }
        if (static_cast<int64_t>(student.size()) > c.top_k) {
          const std::vector<double> share = limbeck::reference_softmax(rest);
          for (size_t v = 0; v < z.size(); ++v) g[v] += kd * (student.back() - soft.soft.back()) * share[v];
        }
      }
    }
    for (double& value : g) value *= kRowScale;
    return g;
  }

  Case c;
  int64_t row;
  int32_t label;
  const uint8_t* allowed;
  std::vector<double> z, values, log_sum_exp;
  ReferenceTeacher<double> teacher;
  ReferenceSoftLabels<double> soft;
};

double relative_error(const std::vector<float>& out, const std::vector<double>& expected, double initial,
                      double floor) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double error = out[i] - initial - expected[i];
    difference += error * error;
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference) / (std::sqrt(norm) + floor);
}

template <typename T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-5 : 1e-2;

/// The op against the reference: sums and gradients.
template <typename T>
bool agrees(const Case& c, double tolerance = kTolerance<T>) {
  const Problem<T> problem(c);
  const Result result = problem.run();
  const size_t width = static_cast<size_t>(c.hidden_size);
  std::vector<double> d_hidden(result.d_hidden.size(), 0), d_table(result.d_table.size(), 0),
      d_bias(result.d_bias.size(), 0);
  double ce_sum = 0, kd_sum = 0;
  for (int64_t r = 0; r < c.num_rows; ++r) {
    const RowReference reference(problem, r);
    ce_sum += reference.cross_entropy(reference.z);
    kd_sum += reference.distillation(reference.z);
    const std::vector<double> g = reference.gradient();
    for (size_t v = 0; v < g.size(); ++v) {
      if (c.with_bias) d_bias[v] += g[v];
      for (size_t i = 0; i < width; ++i) {
        d_hidden[r * width + i] += g[v] * problem.student.table[v * width + i];
        d_table[v * width + i] += g[v] * problem.student.hidden[r * width + i];
      }
    }
  }
  const double rows = static_cast<double>(c.num_rows);
  // The sums do not pass through T: logits are compared as it holds them. In bf16 a logit whose fp32 sum has another
  // order may round to the neighbour.
  const double sum_tolerance = sizeof(T) == 4 ? 1e-5 : 2e-4;
  const bool has_sums = std::fabs(result.ce_sum - ce_sum) <= sum_tolerance * (ce_sum + rows) &&
                        std::fabs(result.kd_sum - kd_sum) <= sum_tolerance * (kd_sum + rows);
  // A gradient may be zero; then its terms, which are of order row_scale, cancel.
  const double floor = kRowScale * 0.1;
  const double errors[] = {relative_error(result.d_hidden, d_hidden, 0, floor),
                           relative_error(result.d_table, d_table, kInitialGradient, floor),
                           relative_error(result.d_bias, d_bias, kInitialGradient, floor)};
  const bool is_good = has_sums && errors[0] <= tolerance && errors[1] <= tolerance && errors[2] <= tolerance;
  if (!is_good) {
    std::printf(
        "rows %d width %d vocab %d source %d tau %g fusion %g gate %g k %d: ce %.9g (%.9g) kd %.9g (%.9g) "
        "errors %.2g %.2g %.2g\n",
        static_cast<int>(c.num_rows), static_cast<int>(c.hidden_size), static_cast<int>(c.vocab_size),
        static_cast<int>(c.source), static_cast<double>(c.options.temperature), static_cast<double>(c.options.fusion),
        static_cast<double>(c.options.gate), static_cast<int>(c.top_k), result.ce_sum, ce_sum, result.kd_sum, kd_sum,
        errors[0], errors[1], errors[2]);
  }
  return is_good;
}

constexpr int64_t kVocabularies[] = {1, 2, 33, 64, 100, 1000};

std::vector<Case> teacher_cases() {
  std::vector<Case> cases;
  int64_t turn = 0;
  for (const Source source : {Source::kDense, Source::kDenseByRow, Source::kFactorised, Source::kTopK}) {
    for (const float temperature : {1.0f, 2.0f, 3.0f}) {
      for (const auto& [fusion, gate] : {std::pair{1.0f, 1.0f}, {0.4f, 1.0f}, {1.0f, 0.3f}, {0.6f, 0.0f}}) {
        for (const int64_t vocab : kVocabularies) {
          ++turn;
          const float ce_weight = turn % 5 == 0 ? 0 : 0.4f;
          Case c{5, 8 + turn % 3, vocab, source, {ce_weight, 0.6f, temperature, fusion, gate}, turn % 2 == 0};
          const int64_t ks[] = {1, vocab / 2, vocab - 1, vocab, 10};
          c.top_k = std::clamp<int64_t>(ks[turn % 5], 1, vocab);
          c.chunk_rows = turn % 4;
          cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

}  // namespace

TEST("cuda: the loss head's reference gradient is the derivative of its value") {
  for (const Case& c : teacher_cases()) {
    if (c.vocab_size != 33) continue;
    const Problem<float> problem(c);
    const RowReference reference(problem, 2);
    const std::vector<double> g = reference.gradient();
    for (size_t v = 0; v < g.size(); ++v) {
      constexpr double kStep = 1e-5;
      std::vector<double> above = reference.z, below = reference.z;
      above[v] += kStep;
      below[v] -= kStep;
      const double derivative = (reference.objective(above) - reference.objective(below)) / (2 * kStep);
      CHECK(std::fabs(derivative - g[v]) < 1e-8);
    }
  }
}

TEST("cuda: cross-entropy alone, for every size and chunk") {
  for (const int64_t vocab : kVocabularies) {
    for (const int64_t rows : {1, 5, 130}) {
      for (const int64_t chunk : {0, 1, 64}) {
        if (rows == 130 && chunk == 1) continue;
        const Case c{rows, vocab % 2 == 0 ? 8 : 5, vocab, Source::kNone, {0.7f}, chunk == 0, 0, false, chunk};
        CHECK(agrees<float>(c));
        CHECK(agrees<bf16>(c));
      }
    }
  }
}

TEST("cuda: distillation in fp32 matches the reference for every teacher, temperature, fusion and gate") {
  for (const Case& c : teacher_cases()) CHECK(agrees<float>(c));
}

TEST("cuda: distillation in bf16 matches the reference for every teacher, temperature, fusion and gate") {
  for (const Case& c : teacher_cases()) CHECK(agrees<bf16>(c));
}

TEST("cuda: rows of the loss head that many threads share, some of them past what the cache holds") {
  for (const auto& [vocab, rows] :
       {std::pair<int64_t, int64_t>{1500, 7}, {8200, 2}, {30001, 1}, {52000, 1}, {60000, 1}}) {
    for (const Source source : {Source::kNone, Source::kDense, Source::kFactorised, Source::kTopK}) {
      const bool is_odd = source == Source::kDense;
      const Case c{rows, 8, vocab, source, {0.4f, 0.6f, 2, is_odd ? 0.5f : 1.0f, is_odd ? 0.5f : 1.0f}, true, 100};
      CHECK(agrees<float>(c, 3e-5));
      CHECK(agrees<bf16>(c));
    }
  }
}

TEST("cuda: rows of the loss head, and the teacher's, that stay in shared memory, several for a block") {
  const int64_t num_multiprocessors = TestDevice().context.num_multiprocessors;
  for (const auto& [vocab, is_many] : {std::pair<int64_t, bool>{8193, true}, {30001, true}, {56000, false}}) {
    const int64_t rows = is_many ? num_multiprocessors + 5 : 6;
    for (const float temperature : {1.0f, 2.0f, 3.0f}) {
      const float gate = temperature == 3 ? 0.5f : 1.0f;
      const Case c{rows, 8, vocab, Source::kFactorised, {0.4f, 0.6f, temperature, 1, gate}, true};
      CHECK(agrees<bf16>(c));
    }
    const Case alone{is_many ? 2 * rows : rows, 8, vocab, Source::kNone, {0.7f}, true};
    CHECK(agrees<bf16>(alone));
  }
}

TEST("cuda: logits of plus and minus eighty") {
  for (const Source source : {Source::kNone, Source::kDense, Source::kFactorised, Source::kTopK}) {
    for (const float temperature : {1.0f, 2.0f}) {
      for (const int64_t vocab : {100, 1500}) {
        Case c{6, 8, vocab, source, {1, 1, temperature, 1, 1}, true, 5};
        c.scale = 25;
        // A logit of 80 is known to 4e-6 in fp32, and so is its exponential.
        CHECK(agrees<float>(c, 3e-5));
        CHECK(agrees<bf16>(c));
      }
    }
  }
}

TEST("cuda: sampled softmax leaves columns out unless they are the label") {
  for (const int64_t vocab : {2, 33, 64, 1000, 1500, 8200}) {
    const Case c{4, 8, vocab, Source::kNone, {1}, true, 0, true, 3};
    CHECK(agrees<float>(c));
    CHECK(agrees<bf16>(c));
    const Problem<float> problem(c);
    const Result result = problem.run();
    for (int64_t v = 0; v < vocab; ++v) {
      const bool is_label = std::count(problem.labels.begin(), problem.labels.end(), v) > 0;
      if (!problem.allowed[v] && !is_label) CHECK(result.d_bias[v] == kInitialGradient);
    }
  }
}

TEST("cuda: an entry of −∞ of a dense teacher has no mass") {
  for (const float fusion : {1.0f, 0.5f}) {
    Case c{4, 8, 100, Source::kDense, {1, 1, 2, fusion, 1}, true};
    Problem<float> problem(c);
    for (double& value : problem.teacher_logits) value = value < 0 ? -HUGE_VAL : value;
    const Result result = problem.run();
    double kd_sum = 0;
    for (int64_t r = 0; r < 4; ++r) {
      const RowReference reference(problem, r);
      kd_sum += reference.distillation(reference.z);
    }
    CHECK(std::fabs(result.kd_sum - kd_sum) < 1e-5 * kd_sum);
    for (float value : result.d_hidden) CHECK(std::isfinite(value));
  }
}

TEST("cuda: the value alone equals the value with gradients, and writes none; twice the same bits") {
  for (const Source source : {Source::kNone, Source::kDenseByRow, Source::kFactorised, Source::kTopK}) {
    for (const int64_t vocab : {100, 1500}) {
      Case c{70, 8, vocab, source, {0.4f, 0.6f, 1, 1, 1}, true, 10};
      c.chunk_rows = 32;
      const Problem<bf16> problem(c);
      const Result with = problem.run(), without = problem.run(false), again = problem.run();
      CHECK(with.ce_sum == without.ce_sum && with.kd_sum == without.kd_sum);
      for (float value : without.d_hidden) CHECK(std::isnan(value));
      for (float value : without.d_table) CHECK(value == kInitialGradient);
      CHECK(with.ce_sum == again.ce_sum && with.kd_sum == again.kd_sum);
      CHECK(same_bits(with.d_hidden, again.d_hidden));
      CHECK(same_bits(with.d_table, again.d_table));
      CHECK(same_bits(with.d_bias, again.d_bias));
    }
  }
}

TEST("cuda: the gradient of the loss head's table is set, or added to what is there") {
  for (const Source source : {Source::kNone, Source::kDense, Source::kFactorised, Source::kTopK}) {
    for (const int64_t chunk_rows : {0, 3}) {
      const Problem<bf16> problem({7, 8, 100, source, {0.4f, 0.6f, 2, 1, 1}, true, 4, false, chunk_rows});
      const Result set = problem.run(true, false), added = problem.run();
      for (size_t i = 0; i < set.d_table.size(); ++i) {
        CHECK(std::fabs(set.d_table[i] + kInitialGradient - added.d_table[i]) < 1e-6f);
      }
      CHECK(same_bits(set.d_hidden, added.d_hidden));
    }
  }
  const Result nothing = Problem<bf16>({5, 8, 100, Source::kNone, {0, 1, 1, 1, 1}}).run(true, false);
  for (float value : nothing.d_table) CHECK(value == 0.0f);
  const Result value = Problem<bf16>({5, 8, 100}).run(false, false);
  for (float untouched : value.d_table) CHECK(std::isnan(untouched));
}

TEST("cuda: with both weights zero the gradient is zero, and a teacher without weight is not read") {
  const Result nothing = Problem<float>({5, 8, 17, Source::kDense, {0, 0, 1, 1, 1}}).run();
  CHECK(nothing.ce_sum == 0 && nothing.kd_sum == 0);
  for (float value : nothing.d_hidden) CHECK(value == 0.0f);
  for (float value : nothing.d_table) CHECK(value == kInitialGradient);

  const Result with = Problem<float>({5, 8, 17, Source::kDense, {1, 0, 1, 1, 1}}).run();
  const Result without = Problem<float>({5, 8, 17, Source::kNone, {1, 0, 1, 1, 1}}).run();
  CHECK(with.kd_sum == 0 && with.ce_sum == without.ce_sum);
  CHECK(same_bits(with.d_hidden, without.d_hidden));
}

TEST("cuda: a NaN in the hidden state shows in the loss") {
  for (const Source source : {Source::kNone, Source::kFactorised, Source::kTopK}) {
    Problem<float> problem({3, 8, 100, source, {1, 1, 1, 1, 1}, true, 4});
    problem.student.hidden[9] = kNaN;
    CHECK(std::isnan(problem.run().ce_sum));
  }
}

TEST("cuda: the loss head refuses a temperature of 0, two teachers, and sampled softmax with a teacher") {
  Case cold{3, 4, 17, Source::kDense, {1, 1, 0, 1, 1}};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", Problem<float>(cold).run());
  Case sampled{3, 4, 17, Source::kDense, {1, 1, 1, 1, 1}};
  sampled.with_allowed = true;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", Problem<float>(sampled).run());
}

TEST("cuda: a measured loss head takes what a run takes, and runs nothing") {
  TestDevice device;
  DeviceArena arena(true), used;
  Context dry{device.context.stream, arena, device.context.blas, device.context.num_multiprocessors, true};
  Context wet{device.context.stream, used, device.context.blas, device.context.num_multiprocessors};
  const int64_t rows = 9, width = 8, vocab = 100;
  const Problem<bf16> problem({rows, width, vocab, Source::kFactorised, {1, 1, 1, 1, 1}});
  const DeviceArray<bf16> hidden(converted<bf16>(problem.student.hidden)), table(problem.student.padded_table()),
      bias(problem.student.padded_bias()), teacher_hidden(converted<bf16>(problem.teacher.hidden)),
      teacher_table(problem.teacher.padded_table());
  const DeviceArray<int32_t> labels(problem.labels);
  DeviceArray<bf16> d_hidden(rows * width);
  DeviceArray<float> d_table(padded(vocab) * width), d_bias(vocab);
  DeviceArray<double> sums(2);
  TeacherLogits<bf16> teacher;
  teacher.hidden = teacher_hidden.data();
  teacher.table = teacher_table.data();
  teacher.hidden_size = kTeacherWidth;
  for (Context* context : {&dry, &wet}) {
    loss_head<bf16>(*context, hidden.data(), {table.data(), bias.data(), vocab, padded(vocab)}, labels.data(), teacher,
                    problem.c.options, kRowScale, nullptr, d_hidden.data(), d_table.data(), true, d_bias.data(),
                    sums.data(), rows, width, 4);
    CHECK(std::isnan(d_hidden.floats()[0]) == context->is_dry);
  }
  CHECK(arena.peak_bytes() == used.peak_bytes());
  CHECK(arena.used_bytes() == 0 && used.used_bytes() == 0);
}

TEST("cuda: dense logits are those of the projection, in fp32") {
  for (const int64_t vocab : kVocabularies) {
    for (const bool with_bias : {false, true}) {
      const int64_t rows = 7;
      const Projection<bf16> projection(rows, 8, vocab, with_bias, 30, 3);
      TestDevice device;
      const DeviceArray<bf16> hidden(converted<bf16>(projection.hidden)), table(projection.padded_table()),
          bias(projection.padded_bias());
      DeviceArray<float> logits(rows * vocab);
      dense_logits<bf16>(device.context, hidden.data(),
                         {table.data(), with_bias ? bias.data() : nullptr, vocab, padded(vocab)}, logits.data(), rows,
                         8, 3);
      const std::vector<float> out = logits.get();
      const std::vector<double> h(projection.hidden.begin(), projection.hidden.end());
      const std::vector<double> t(projection.table.begin(), projection.table.end());
      const std::vector<double> b(projection.bias.begin(), projection.bias.end());
      for (int64_t r = 0; r < rows; ++r) {
        const auto z = limbeck::reference_logits(h.data() + r * 8, t.data(), with_bias ? b.data() : nullptr, 8, vocab);
        for (int64_t v = 0; v < vocab; ++v) CHECK(std::fabs(out[r * vocab + v] - z[v]) < 1e-5);
      }
    }
  }
}

namespace {

/// sampled_loss_head over drawn columns and, in rows whose label was not drawn, a column of their own.
template <typename T>
bool sampled_loss_agrees(int64_t rows, int64_t width, int64_t count, int64_t chunk_rows) {
  const Projection<T> drawn(rows, width, count, true, 60, 1), own(1, width, rows, true, 70, 1);
  std::vector<int32_t> columns;
  for (int64_t r = 0; r < rows; ++r) columns.push_back(r % 3 == 1 ? -1 : static_cast<int32_t>((r * 7) % count));
  TestDevice device;
  const DeviceArray<T> hidden(converted<T>(drawn.hidden)), table(drawn.padded_table()), bias(drawn.padded_bias()),
      own_table(converted<T>(own.table)), own_bias(converted<T>(own.bias));
  const DeviceArray<int32_t> device_columns(columns);
  DeviceArray<T> d_hidden(rows * width), d_labels(rows * width);
  DeviceArray<float> d_drawn(std::vector<float>(padded(count) * width, kInitialGradient)),
      d_bias(std::vector<float>(count, kInitialGradient)), d_own_bias(rows);
  DeviceArray<double> sums(std::vector<double>(2, kInitialSum));
  constexpr float kWeight = 0.7f;
  sampled_loss_head<T>(device.context, hidden.data(), {table.data(), bias.data(), count, padded(count)},
                       {device_columns.data(), own_table.data(), own_bias.data()}, kWeight, kRowScale, d_hidden.data(),
                       d_drawn.data(), d_bias.data(), d_labels.data(), d_own_bias.data(), sums.data(), rows, width,
                       chunk_rows);
  std::vector<double> expected_hidden(rows * width), expected_drawn(count * width), expected_bias(count),
      expected_labels(rows * width), expected_own(rows);
  double ce_sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> z = drawn.logits(r);
    const bool has_own = columns[r] < 0;
    if (has_own) {
      z.push_back(own.bias[r]);
      for (int64_t i = 0; i < width; ++i) {
        z.back() += static_cast<double>(drawn.hidden[r * width + i]) * static_cast<double>(own.table[r * width + i]);
      }
    }
    const int64_t label = has_own ? count : columns[r];
    ce_sum += limbeck::reference_log_sum_exp(z) - z[label];
    std::vector<double> g = limbeck::reference_softmax(z);
    g[label] -= 1;
    for (size_t v = 0; v < g.size(); ++v) {
      g[v] *= kRowScale * kWeight;
      const bool is_own = static_cast<int64_t>(v) == count;
      const float* weight = is_own ? own.table.data() + r * width : drawn.table.data() + v * width;
      double* d_weight = is_own ? expected_labels.data() + r * width : expected_drawn.data() + v * width;
      (is_own ? expected_own[r] : expected_bias[v]) += g[v];
      for (int64_t i = 0; i < width; ++i) {
        expected_hidden[r * width + i] += g[v] * weight[i];
        d_weight[i] += g[v] * drawn.hidden[r * width + i];
      }
    }
  }
  const std::vector<double> both = sums.get();
  const std::vector<float> labels = d_labels.floats(), own_gradients = d_own_bias.get();
  bool is_good = std::fabs(both[0] - kInitialSum - ce_sum) <= 1e-5 * (ce_sum + static_cast<double>(rows)) &&
                 both[1] == kInitialSum;
  for (int64_t r = 0; r < rows; ++r) {
    is_good = is_good && (columns[r] < 0 || (own_gradients[r] == 0.0f && labels[r * width] == 0.0f));
  }
  const double tolerance = kTolerance<T>;
  return is_good && relative_error(d_hidden.floats(), expected_hidden, 0, 1e-2) <= tolerance &&
         relative_error(without_pads(d_drawn.get(), count, width, kInitialGradient), expected_drawn, kInitialGradient,
                        1e-2) <= tolerance &&
         relative_error(d_bias.get(), expected_bias, kInitialGradient, 1e-2) <= tolerance &&
         relative_error(labels, expected_labels, 0, 1e-2) <= tolerance &&
         relative_error(own_gradients, expected_own, 0, 1e-2) <= tolerance;
}

}  // namespace

TEST("cuda: the sampled loss head gives rows a class of their own where their label was not drawn") {
  for (const int64_t count : {1, 33, 64, 300, 1500, 8200}) {
    for (const int64_t rows : {1, 2, 9}) {
      CHECK(sampled_loss_agrees<float>(rows, 8, count, 0));
      CHECK(sampled_loss_agrees<float>(rows, 5, count, 4));
      CHECK(sampled_loss_agrees<bf16>(rows, 16, count, 2));
    }
  }
}

TEST("cuda: a sampled table has the rows asked for, and gives its gradient back") {
  for (const int64_t width : {5, 8, 24}) {
    for (const int64_t count : {1, 50, 64, 70}) {
      const int64_t vocab = 90;
      const Projection<bf16> projection(1, width, vocab, true, 40, 1);
      std::vector<int32_t> chosen;
      for (int64_t i = 0; i < count; ++i) chosen.push_back(static_cast<int32_t>((i * 37 + 11) % vocab));
      TestDevice device;
      const DeviceArray<bf16> table(projection.padded_table()), bias(projection.padded_bias());
      const DeviceArray<int32_t> indices(chosen);
      DeviceArray<bf16> sampled(padded(count) * width), sampled_bias(padded(count));
      sample_table<bf16>(device.context, {table.data(), bias.data(), vocab, padded(vocab)}, indices.data(), count,
                         sampled.data(), sampled_bias.data(), width);
      const std::vector<float> rows = sampled.floats(), values = sampled_bias.floats();
      for (int64_t r = 0; r < padded(count); ++r) {
        if (r < count) CHECK(values[r] == projection.bias[chosen[r]]);
        for (int64_t i = 0; i < width; ++i) {
          CHECK(rows[r * width + i] == (r < count ? projection.table[chosen[r] * width + i] : 0.0f));
        }
      }

      const std::vector<float> gradient = random_floats(count * width, 50), bias_gradient = random_floats(count, 51);
      const DeviceArray<float> d_sampled(gradient), d_sampled_bias(bias_gradient);
      DeviceArray<float> d_table(std::vector<float>(vocab * width, 0.5f)), d_bias(std::vector<float>(vocab, 0.5f));
      scatter_table_gradient(device.context, d_sampled.data(), d_sampled_bias.data(), indices.data(), count,
                             d_table.data(), d_bias.data(), width);
      std::vector<float> expected(vocab * width, 0.5f), expected_bias(vocab, 0.5f);
      for (int64_t r = 0; r < count; ++r) {
        expected_bias[chosen[r]] += bias_gradient[r];
        for (int64_t i = 0; i < width; ++i) expected[chosen[r] * width + i] += gradient[r * width + i];
      }
      CHECK(d_table.get() == expected);
      CHECK(d_bias.get() == expected_bias);
    }
  }
}
