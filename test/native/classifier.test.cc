#include "train/classifier.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

struct Problem {
  std::vector<float> x;  // [rows, columns]
  std::vector<int32_t> labels;
  int64_t num_columns;
  ClassifierInputs options{};

  ClassifierInputs inputs() const {
    ClassifierInputs inputs = options;
    inputs.x = x.data();
    inputs.labels = labels.data();
    inputs.num_rows = static_cast<int64_t>(labels.size());
    inputs.num_columns = num_columns;
    return inputs;
  }
};

/// Clouds around a centre of each class, columns of very different scales and far from 0.
Problem clouds(int64_t num_rows, int64_t num_columns, int32_t num_classes, float noise = 1.0f) {
  Problem problem;
  problem.num_columns = num_columns;
  const Philox centres{11, 1}, points{11, 2};
  for (int64_t i = 0; i < num_rows; ++i) {
    const auto label = static_cast<int32_t>(i % num_classes);
    problem.labels.push_back(label);
    for (int64_t c = 0; c < num_columns; ++c) {
      const float centre = centres.normal(static_cast<uint64_t>(label * num_columns + c));
      const float point = centre + noise * points.normal(static_cast<uint64_t>(i * num_columns + c));
      problem.x.push_back(static_cast<float>(c) * 20.0f + point * static_cast<float>(1 + c % 5));
    }
  }
  problem.options.num_classes = num_classes;
  problem.options.learning_rate = 0.01f;
  problem.options.l2 = 1e-3f;
  problem.options.batch_size = 32;
  problem.options.max_epochs = 60;
  problem.options.patience = 5;
  problem.options.held_out = 0.2;
  problem.options.seed = 3;
  return problem;
}

ClassifierResult fit(const ClassifierInputs& inputs, int num_threads = 1, Precision precision = Precision::kFloat32) {
  ThreadPool pool(num_threads);
  Arena scratch, arena;
  Context context{pool, scratch, precision};
  return fit_classifier(context, arena, inputs);
}

std::vector<float> probabilities(const ClassifierInputs& inputs, const ClassifierResult& result,
                                 Precision precision = Precision::kFloat32) {
  ThreadPool pool(2);
  Arena scratch;
  Context context{pool, scratch, precision};
  std::vector<float> out(static_cast<size_t>(inputs.num_rows * inputs.num_classes), NAN);
  class_probabilities(context, inputs.x, result.weight.data(), result.bias.data(), out.data(), inputs.num_rows,
                      inputs.num_columns, inputs.num_classes);
  return out;
}

double accuracy(const ClassifierInputs& inputs, const ClassifierResult& result) {
  const std::vector<float> rows = probabilities(inputs, result);
  int64_t correct = 0;
  for (int64_t i = 0; i < inputs.num_rows; ++i) {
    const auto row = rows.begin() + i * inputs.num_classes;
    correct += std::max_element(row, row + inputs.num_classes) - row == inputs.labels[i];
  }
  return static_cast<double>(correct) / static_cast<double>(inputs.num_rows);
}

/// Mean cross-entropy and penalty of standardised rows z [rows, C], in double; parameters: weight [K, C], bias [K].
double reference_loss(const std::vector<double>& z, const Problem& problem, const std::vector<double>& parameters) {
  const auto C = static_cast<size_t>(problem.num_columns), K = static_cast<size_t>(problem.options.num_classes);
  const size_t R = problem.labels.size();
  double loss = 0;
  for (size_t i = 0; i < K * C; ++i) loss += 0.5 * problem.options.l2 * parameters[i] * parameters[i];
  for (size_t i = 0; i < R; ++i) {
    double sum = 0, own = 0;
    for (size_t k = 0; k < K; ++k) {
      double logit = parameters[K * C + k];
      for (size_t c = 0; c < C; ++c) logit += parameters[k * C + c] * z[i * C + c];
      sum += std::exp(logit);
      if (static_cast<int32_t>(k) == problem.labels[i]) own = logit;
    }
    loss += (std::log(sum) - own) / static_cast<double>(R);
  }
  return loss;
}

struct Reference {
  std::vector<double> weight, bias;  // for x as it came
};

/// Full-batch Adam on finite differences of the reference loss, one step an epoch.
Reference reference_fit(const Problem& problem) {
  const auto C = static_cast<size_t>(problem.num_columns), K = static_cast<size_t>(problem.options.num_classes);
  const size_t R = problem.labels.size();
  std::vector<double> mean(C), deviation(C), z(R * C);
  for (size_t c = 0; c < C; ++c) {
    for (size_t i = 0; i < R; ++i) mean[c] += problem.x[i * C + c] / static_cast<double>(R);
    for (size_t i = 0; i < R; ++i) deviation[c] += std::pow(problem.x[i * C + c] - mean[c], 2) / static_cast<double>(R);
    deviation[c] = std::sqrt(deviation[c]);
    for (size_t i = 0; i < R; ++i) z[i * C + c] = (problem.x[i * C + c] - mean[c]) / deviation[c];
  }
  const size_t P = K * C + K;
  std::vector<double> parameters(P), first(P), second(P), gradients(P);
  constexpr double kDifference = 1e-5;
  for (int64_t step = 1; step <= problem.options.max_epochs; ++step) {
    for (size_t p = 0; p < P; ++p) {
      std::vector<double> above = parameters, below = parameters;
      above[p] += kDifference;
      below[p] -= kDifference;
      gradients[p] = (reference_loss(z, problem, above) - reference_loss(z, problem, below)) / (2 * kDifference);
    }
    for (size_t p = 0; p < P; ++p) {
      first[p] = 0.9 * first[p] + 0.1 * gradients[p];
      second[p] = 0.999 * second[p] + 0.001 * gradients[p] * gradients[p];
      parameters[p] -= problem.options.learning_rate * (first[p] / (1 - std::pow(0.9, step))) /
                       (std::sqrt(second[p] / (1 - std::pow(0.999, step))) + 1e-8);
    }
  }
  Reference reference;
  for (size_t k = 0; k < K; ++k) {
    reference.bias.push_back(parameters[K * C + k]);
    for (size_t c = 0; c < C; ++c) {
      reference.weight.push_back(parameters[k * C + c] / deviation[c]);
      reference.bias.back() -= reference.weight.back() * mean[c];
    }
  }
  return reference;
}

}  // namespace

TEST("a classifier's steps follow the gradient of cross-entropy and penalty") {
  for_each_isa([] {
    Problem problem = clouds(23, 7, 3);
    problem.options.held_out = 0;
    problem.options.batch_size = 23;
    problem.options.max_epochs = 15;
    problem.options.l2 = 0.3f;
    problem.options.learning_rate = 0.05f;
    const ClassifierResult result = fit(problem.inputs());
    const Reference reference = reference_fit(problem);
    for (size_t i = 0; i < 21; ++i) CHECK(std::fabs(result.weight[i] - reference.weight[i]) < 2e-4);
    for (size_t k = 0; k < 3; ++k) CHECK(std::fabs(result.bias[k] - reference.bias[k]) < 5e-3);
    CHECK(std::fabs(result.train_losses[0] - std::log(3.0)) < 1e-6);
    CHECK(result.train_losses.size() == 15 && result.best_epoch == 14);
    CHECK(result.held_out_losses.empty() && result.held_out_rows.empty());
  });
}

TEST("a classifier learns classes that columns tell apart, a constant column being no hindrance") {
  for_each_isa([] {
    Problem problem = clouds(600, 19, 4);
    for (size_t i = 0; i < 600; ++i) problem.x[i * 19 + 4] = 0.1f;
    const ClassifierResult result = fit(problem.inputs());
    CHECK(accuracy(problem.inputs(), result) > 0.95);
    for (size_t k = 0; k < 4; ++k) CHECK(result.weight[k * 19 + 4] == 0);
  });
}

TEST("the parameters are those of the epoch of least held-out loss, and later epochs end it") {
  Problem problem = clouds(90, 60, 3, 4.0f);
  problem.options.l2 = 0;
  problem.options.learning_rate = 0.05f;
  problem.options.patience = 3;
  const ClassifierInputs inputs = problem.inputs();
  const ClassifierResult result = fit(inputs);
  const std::vector<double>& losses = result.held_out_losses;
  CHECK(std::min_element(losses.begin(), losses.end()) - losses.begin() == result.best_epoch);
  CHECK(static_cast<int64_t>(losses.size()) == result.best_epoch + 4 && losses.size() < 60);
  const std::vector<float> rows = probabilities(inputs, result);
  double sum = 0;
  for (const int32_t row : result.held_out_rows) {
    sum -= std::log(rows[static_cast<size_t>(row * 3 + inputs.labels[row])]);
  }
  CHECK(std::fabs(sum / static_cast<double>(result.held_out_rows.size()) -
                  losses[static_cast<size_t>(result.best_epoch)]) < 1e-3);
}

TEST("each class gives its share of held-out rows, by the seed, and keeps one at least") {
  Problem problem = clouds(100, 3, 2);
  for (size_t i = 0; i < 100; ++i) problem.labels[i] = i < 60 ? 0 : i < 99 ? 1 : 2;
  problem.options.num_classes = 3;
  problem.options.held_out = 0.5;
  const ClassifierResult result = fit(problem.inputs());
  std::vector<int> counts(3);
  for (const int32_t row : result.held_out_rows)
    ++counts[static_cast<size_t>(problem.labels[static_cast<size_t>(row)])];
  CHECK(counts == std::vector<int>({30, 20, 0}));
  CHECK(std::is_sorted(result.held_out_rows.begin(), result.held_out_rows.end()));
  problem.options.seed = 4;
  CHECK(fit(problem.inputs()).held_out_rows != result.held_out_rows);
}

TEST("a classifier has the same bits on any number of threads and in any precision of the engine") {
  const Problem problem = clouds(300, 33, 5);
  const ClassifierResult one = fit(problem.inputs());
  for (const int num_threads : {2, 3}) {
    const ClassifierResult other = fit(problem.inputs(), num_threads, Precision::kBFloat16);
    CHECK(other.weight == one.weight && other.bias == one.bias && other.held_out_losses == one.held_out_losses);
  }
  CHECK(probabilities(problem.inputs(), one, Precision::kBFloat16) == probabilities(problem.inputs(), one));
}

TEST("class probabilities are the softmax of the logits, however large these are") {
  ClassifierResult head{};
  head.weight = {1, 0, 0, 2, -1, 500};
  head.bias = {0.5f, -1, 0};
  const std::vector<float> x = {0.3f, -0.2f, 1, 4};
  ClassifierInputs inputs{};
  inputs.x = x.data();
  inputs.num_rows = 2, inputs.num_columns = 2, inputs.num_classes = 3;
  const std::vector<float> found = probabilities(inputs, head);
  const double a = std::exp(0.8), b = std::exp(-1.4), c = std::exp(-100.3);
  CHECK(std::fabs(found[0] - a / (a + b + c)) < 1e-6 && std::fabs(found[1] - b / (a + b + c)) < 1e-6);
  CHECK(found[2] < 1e-20f);
  CHECK(found[3] == 0 && found[4] == 0 && found[5] == 1);
}

TEST("fit_classifier refuses labels out of range, absent classes, NaN and options out of range") {
  const Problem good = clouds(20, 3, 2);
  auto refuses = [&](auto&& change) {
    Problem problem = good;
    change(problem);
    CHECK_ERROR("ERR_INVALID_ARGUMENT", fit(problem.inputs()));
  };
  refuses([](Problem& p) { p.labels[3] = 2; });
  refuses([](Problem& p) { p.labels[3] = -1; });
  refuses([](Problem& p) { p.options.num_classes = 3; });
  refuses([](Problem& p) { p.labels.assign(20, 0), p.options.num_classes = 1; });
  refuses([](Problem& p) { p.x[7] = std::numeric_limits<float>::quiet_NaN(); });
  refuses([](Problem& p) { p.x[7] = std::numeric_limits<float>::infinity(); });
  refuses([](Problem& p) { p.options.held_out = 1; });
  refuses([](Problem& p) { p.options.held_out = std::numeric_limits<double>::quiet_NaN(); });
  refuses([](Problem& p) { p.options.learning_rate = 0; });
  refuses([](Problem& p) { p.options.l2 = -1; });
  refuses([](Problem& p) { p.options.batch_size = 0; });
  refuses([](Problem& p) { p.options.max_epochs = 0; });
  refuses([](Problem& p) { p.options.patience = 0; });
  Problem diverging = good;
  diverging.options.learning_rate = 3e38f;
  CHECK_ERROR("ERR_NOT_FINITE", fit(diverging.inputs()));
}
