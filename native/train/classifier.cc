#include "train/classifier.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "ops/linear.h"
#include "ops/loss_head.h"
#include "ops/optimizer.h"

namespace limbeck {

namespace {

constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f, kEpsilon = 1e-8f;
constexpr uint64_t kSplitStream = 1, kBatchStream = 2;
constexpr int64_t kEvaluationRows = 1024;
/// Deviations smaller than this share of the mean are rounding of fp32, not signal.
constexpr double kLeastDeviation = 1e-6;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_inputs(const ClassifierInputs& inputs) {
  if (inputs.num_rows < 1 || inputs.num_columns < 1) invalid("Expected at least one row and column.");
  if (inputs.num_classes < 2) {
    invalid("Expected at least 2 classes, got " + std::to_string(inputs.num_classes) + ".");
  }
  if (inputs.batch_size < 1 || inputs.max_epochs < 1 || inputs.patience < 1) {
    invalid("Expected batch_size, max_epochs and patience of at least 1.");
  }
  if (!(inputs.learning_rate > 0) || !(inputs.l2 >= 0)) invalid("Expected learning_rate > 0 and l2 >= 0.");
  if (!(inputs.held_out >= 0 && inputs.held_out < 1)) invalid("Expected held_out in [0, 1).");
  std::vector<bool> has_row(static_cast<size_t>(inputs.num_classes));
  for (int64_t i = 0; i < inputs.num_rows; ++i) {
    const int32_t label = inputs.labels[i];
    if (label < 0 || label >= inputs.num_classes) {
      invalid("labels[" + std::to_string(i) + "] = " + std::to_string(label) + " is outside the " +
              std::to_string(inputs.num_classes) + " classes.");
    }
    has_row[static_cast<size_t>(label)] = true;
  }
  const auto missing = std::find(has_row.begin(), has_row.end(), false);
  if (missing != has_row.end()) {
    invalid("Expected a row of every class; class " + std::to_string(missing - has_row.begin()) + " has none.");
  }
  for (int64_t i = 0; i < inputs.num_rows * inputs.num_columns; ++i) {
    if (!std::isfinite(inputs.x[i])) {
      invalid("Expected finite vectors; row " + std::to_string(i / inputs.num_columns) +
              " has NaN or infinity in column " + std::to_string(i % inputs.num_columns) + ".");
    }
  }
}

/// Fisher–Yates with words `draw`, `draw` + 1, … of the generator.
void shuffle(std::vector<int32_t>& rows, const Philox& random, uint64_t& draw) {
  for (size_t i = 0; i + 1 < rows.size(); ++i) {
    const uint64_t places = rows.size() - i;
    std::swap(rows[i], rows[i + ((random.word(draw++) * places) >> 32)]);
  }
}

struct Split {
  std::vector<int32_t> train, held_out;  // rows, ascending
};

/// Each class gives the same share of its rows, so that none is missing from what is trained on.
Split split_rows(const ClassifierInputs& inputs) {
  std::vector<int64_t> left(static_cast<size_t>(inputs.num_classes));  // rows that the class may still give
  for (int64_t i = 0; i < inputs.num_rows; ++i) ++left[static_cast<size_t>(inputs.labels[i])];
  for (int64_t& count : left) {
    count = std::min(count - 1, static_cast<int64_t>(std::llround(inputs.held_out * static_cast<double>(count))));
  }
  std::vector<int32_t> rows(static_cast<size_t>(inputs.num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  uint64_t draw = 0;
  shuffle(rows, Philox{inputs.seed, kSplitStream}, draw);
  Split split;
  for (const int32_t row : rows) {
    int64_t& count = left[static_cast<size_t>(inputs.labels[row])];
    (count > 0 ? split.held_out : split.train).push_back(row);
    if (count > 0) --count;
  }
  std::sort(split.train.begin(), split.train.end());
  std::sort(split.held_out.begin(), split.held_out.end());
  return split;
}

class Regression {
 public:
  Regression(Context& context, Arena& arena, const ClassifierInputs& inputs, const std::vector<int32_t>& train);

  /// One update on these rows; returns the sum of their cross-entropies before it.
  double step(const int32_t* rows, int64_t count);
  /// Mean cross-entropy of rows.
  double loss(const std::vector<int32_t>& rows);

  std::vector<float> parameters() const { return {parameters_, parameters_ + num_parameters()}; }
  /// Weight and bias for x as it came.
  void fold(const std::vector<float>& parameters, ClassifierResult& result) const;

 private:
  int64_t num_parameters() const { return K_ * C_ + K_; }
  void standardise(const std::vector<int32_t>& train);
  void gather(const int32_t* rows, int64_t count);

  Context& context_;
  const ClassifierInputs& inputs_;
  int64_t K_, C_, step_ = 0;
  double *means_, *inverse_deviations_;                // [C]; 0 for a column without any
  float *batch_, *d_batch_;                            // [max(batch_size, kEvaluationRows), C] standardised
  int32_t* labels_;                                    // [max(batch_size, kEvaluationRows)]
  float *parameters_, *gradients_, *first_, *second_;  // weight [K, C], then bias [K]
};

Regression::Regression(Context& context, Arena& arena, const ClassifierInputs& inputs,
                       const std::vector<int32_t>& train)
    : context_(context), inputs_(inputs), K_(inputs.num_classes), C_(inputs.num_columns) {
  const int64_t step_rows = std::min(inputs.batch_size, static_cast<int64_t>(train.size()));
  const int64_t rows = std::max(step_rows, std::min(kEvaluationRows, inputs.num_rows));
  means_ = arena.allocate<double>(C_);
  inverse_deviations_ = arena.allocate<double>(C_);
  batch_ = arena.allocate<float>(rows * C_);
  d_batch_ = arena.allocate<float>(step_rows * C_);
  labels_ = arena.allocate<int32_t>(rows);
  parameters_ = arena.allocate<float>(num_parameters());
  gradients_ = arena.allocate<float>(num_parameters());
  first_ = arena.allocate<float>(num_parameters());
  second_ = arena.allocate<float>(num_parameters());
  for (float* values : {parameters_, first_, second_}) std::fill(values, values + num_parameters(), 0.0f);
  standardise(train);
}

// Two passes, so that a mean far from 0 costs the variance no digits.
void Regression::standardise(const std::vector<int32_t>& train) {
  const auto count = static_cast<double>(train.size());
  std::fill(means_, means_ + C_, 0.0);
  std::fill(inverse_deviations_, inverse_deviations_ + C_, 0.0);
  for (const int32_t row : train) {
    for (int64_t c = 0; c < C_; ++c) means_[c] += inputs_.x[row * C_ + c];
  }
  for (int64_t c = 0; c < C_; ++c) means_[c] /= count;
  for (const int32_t row : train) {
    for (int64_t c = 0; c < C_; ++c) {
      const double difference = inputs_.x[row * C_ + c] - means_[c];
      inverse_deviations_[c] += difference * difference;
    }
  }
  for (int64_t c = 0; c < C_; ++c) {
    const double deviation = std::sqrt(inverse_deviations_[c] / count);
    inverse_deviations_[c] = deviation > kLeastDeviation * std::fabs(means_[c]) ? 1 / deviation : 0;
  }
}

void Regression::gather(const int32_t* rows, int64_t count) {
  context_.pool.parallel_for(count, [&](int64_t i, int) {
    const float* x = inputs_.x + rows[i] * C_;
    for (int64_t c = 0; c < C_; ++c) {
      batch_[i * C_ + c] = static_cast<float>((x[c] - means_[c]) * inverse_deviations_[c]);
    }
    labels_[i] = inputs_.labels[rows[i]];
  });
}

double Regression::step(const int32_t* rows, int64_t count) {
  gather(rows, count);
  for (int64_t i = 0; i < K_ * C_; ++i) gradients_[i] = inputs_.l2 * parameters_[i];
  std::fill(gradients_ + K_ * C_, gradients_ + num_parameters(), 0.0f);
  const LossHeadResult result =
      loss_head(context_, batch_, parameters_, parameters_ + K_ * C_, labels_, {}, {}, 1 / static_cast<double>(count),
                nullptr, d_batch_, gradients_, gradients_ + K_ * C_, count, C_, K_);
  adamw(context_, parameters_, gradients_, first_, second_, num_parameters(),
        {inputs_.learning_rate, kBeta1, kBeta2, kEpsilon, 0, ++step_, 1});
  return result.ce_sum;
}

double Regression::loss(const std::vector<int32_t>& rows) {
  const auto count = static_cast<int64_t>(rows.size());
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kEvaluationRows) {
    const int64_t part = std::min(kEvaluationRows, count - begin);
    gather(rows.data() + begin, part);
    sum += loss_head(context_, batch_, parameters_, parameters_ + K_ * C_, labels_, {}, {}, 1, nullptr, nullptr,
                     nullptr, nullptr, part, C_, K_)
               .ce_sum;
  }
  return sum / static_cast<double>(count);
}

void Regression::fold(const std::vector<float>& parameters, ClassifierResult& result) const {
  for (int64_t k = 0; k < K_; ++k) {
    double bias = parameters[static_cast<size_t>(K_ * C_ + k)];
    for (int64_t c = 0; c < C_; ++c) {
      const auto weight = static_cast<float>(parameters[static_cast<size_t>(k * C_ + c)] * inverse_deviations_[c]);
      bias -= weight * means_[c];
      result.weight.push_back(weight);
    }
    result.bias.push_back(static_cast<float>(bias));
  }
}

void check_finite(double loss, size_t epoch) {
  if (std::isfinite(loss)) return;
  throw Error("ERR_NOT_FINITE", "The classifier's loss became NaN or infinite in epoch " + std::to_string(epoch) +
                                    ": choose a smaller learning rate.");
}

}  // namespace

ClassifierResult fit_classifier(Context& context, Arena& arena, const ClassifierInputs& inputs) {
  check_inputs(inputs);
  arena.reset();
  Context exact{context.pool, context.scratch};
  Split split = split_rows(inputs);
  Regression regression(exact, arena, inputs, split.train);
  ClassifierResult result{};
  std::vector<float> best;
  const Philox random{inputs.seed, kBatchStream};
  uint64_t draw = 0;
  const auto num_train = static_cast<int64_t>(split.train.size());
  for (int64_t epoch = 0; epoch < inputs.max_epochs; ++epoch) {
    shuffle(split.train, random, draw);
    double sum = 0;
    for (int64_t begin = 0; begin < num_train; begin += inputs.batch_size) {
      sum += regression.step(split.train.data() + begin, std::min(inputs.batch_size, num_train - begin));
    }
    result.train_losses.push_back(sum / static_cast<double>(num_train));
    check_finite(result.train_losses.back(), result.train_losses.size());
    if (split.held_out.empty()) continue;
    const double loss = regression.loss(split.held_out);
    check_finite(loss, result.train_losses.size());
    result.held_out_losses.push_back(loss);
    if (best.empty() || loss < result.held_out_losses[static_cast<size_t>(result.best_epoch)]) {
      best = regression.parameters();
      result.best_epoch = epoch;
    } else if (epoch - result.best_epoch >= inputs.patience) {
      break;
    }
  }
  if (split.held_out.empty()) {
    best = regression.parameters();
    result.best_epoch = inputs.max_epochs - 1;
  }
  if (!std::all_of(best.begin(), best.end(), [](float value) { return std::isfinite(value); })) {
    check_finite(NAN, result.train_losses.size());
  }
  regression.fold(best, result);
  result.held_out_rows = std::move(split.held_out);
  return result;
}

void class_probabilities(Context& context, const float* x, const float* weight, const float* bias, float* probabilities,
                         int64_t num_rows, int64_t num_columns, int64_t num_classes) {
  Context exact{context.pool, context.scratch};
  linear_forward(exact, x, weight, bias, probabilities, num_rows, num_columns, num_classes);
  exact.pool.parallel_for(num_rows, [&](int64_t i, int) {
    float* row = probabilities + i * num_classes;
    const float highest = *std::max_element(row, row + num_classes);
    double sum = 0;
    for (int64_t k = 0; k < num_classes; ++k) {
      row[k] = std::exp(row[k] - highest);
      sum += row[k];
    }
    for (int64_t k = 0; k < num_classes; ++k) row[k] = static_cast<float>(row[k] / sum);
  });
}

}  // namespace limbeck
