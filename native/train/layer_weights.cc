#include "train/layer_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "ops/linear.h"

namespace limbeck {

namespace {

constexpr int64_t kBatchPairs = 128;
constexpr float kTemperature = 0.1f;
constexpr double kLearningRate = 0.05, kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
constexpr uint64_t kBatchStream = 1;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_rows(const char* name, const int32_t* rows, const LayerWeightsInputs& inputs) {
  for (int64_t i = 0; i < inputs.num_pairs; ++i) {
    if (rows[i] < 0 || rows[i] >= inputs.num_rows) {
      invalid(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(rows[i]) + " is outside the " +
              std::to_string(inputs.num_rows) + " rows.");
    }
  }
}

void check_inputs(const LayerWeightsInputs& inputs) {
  if (inputs.layers.empty()) invalid("Expected at least one layer.");
  if (inputs.num_rows < 1 || inputs.num_columns < 1) invalid("Expected layers of at least one row and column.");
  if (inputs.num_pairs < 2) {
    invalid("Expected at least 2 pairs, got " + std::to_string(inputs.num_pairs) +
            ": each is learned against the others.");
  }
  if (inputs.num_steps < 1) invalid("Expected at least 1 step, got " + std::to_string(inputs.num_steps) + ".");
  check_rows("queries", inputs.queries, inputs);
  check_rows("targets", inputs.targets, inputs);
}

/// Eight partial sums, so that the compiler may use vectors without changing the order of any sum.
template <typename Term>
double sum_columns(int64_t count, Term&& term) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += term(i + lane);
  }
  for (; i < count; ++i) sums[0] += term(i);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

std::vector<double> softmax(const std::vector<double>& logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights;
  for (double logit : logits) weights.push_back(std::exp(logit - highest));
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// Adam (Kingma & Ba 2015, arXiv:1412.6980, alg. 1) on a handful of numbers.
class Adam {
 public:
  explicit Adam(size_t count) : first_(count), second_(count) {}

  void update(const std::vector<double>& gradients, std::vector<double>& parameters) {
    ++step_;
    for (size_t i = 0; i < parameters.size(); ++i) {
      first_[i] = kBeta1 * first_[i] + (1 - kBeta1) * gradients[i];
      second_[i] = kBeta2 * second_[i] + (1 - kBeta2) * gradients[i] * gradients[i];
      const double first = first_[i] / (1 - std::pow(kBeta1, step_));
      const double second = second_[i] / (1 - std::pow(kBeta2, step_));
      parameters[i] -= kLearningRate * first / (std::sqrt(second) + kEpsilon);
    }
  }

 private:
  std::vector<double> first_, second_;
  int step_ = 0;
};

/// Loss and gradient of the mix on one batch of B pairs. Rows 0 … B − 1 of its buffers are queries, the others targets.
class Contrast {
 public:
  Contrast(Context& context, Arena& arena, const LayerWeightsInputs& inputs);

  /// Mean loss over the pairs with these indices, distinct; d_weights [layers] =.
  double loss(const std::vector<int64_t>& pairs, const std::vector<double>& weights, std::vector<double>& d_weights);

  int64_t num_pairs() const { return B_; }

 private:
  void find_means();
  void fuse(const std::vector<double>& weights);
  double softmax_loss();
  void differentiate(std::vector<double>& d_weights);

  Context& context_;
  const LayerWeightsInputs& inputs_;
  int64_t L_, C_, B_;
  float* means_;            // [L, C]
  int32_t* rows_;           // [2B] of the layers
  float *unit_, *d_unit_;   // [2B, C] fused vectors of length 1, and the gradient
  float* inverse_lengths_;  // [2B] of the fused vectors; 0 for a vector of zeros, which has no direction to learn from
  float* logits_;           // [B, B], then their gradient
  double* losses_;          // [B]
  double* d_mix_;           // [2B, L] each row's share of d_weights
};

Contrast::Contrast(Context& context, Arena& arena, const LayerWeightsInputs& inputs)
    : context_(context),
      inputs_(inputs),
      L_(static_cast<int64_t>(inputs.layers.size())),
      C_(inputs.num_columns),
      B_(std::min(kBatchPairs, inputs.num_pairs)),
      means_(arena.allocate<float>(L_ * C_)),
      rows_(arena.allocate<int32_t>(2 * B_)),
      unit_(arena.allocate<float>(2 * B_ * C_)),
      d_unit_(arena.allocate<float>(2 * B_ * C_)),
      inverse_lengths_(arena.allocate<float>(2 * B_)),
      logits_(arena.allocate<float>(B_ * B_)),
      losses_(arena.allocate<double>(B_)),
      d_mix_(arena.allocate<double>(2 * B_ * L_)) {
  find_means();
}

void Contrast::find_means() {
  const Arena::Scope scope(context_.scratch);
  double* sums = context_.scratch.allocate<double>(L_ * C_);
  context_.pool.parallel_for(L_, [&](int64_t l, int) {
    const float* layer = inputs_.layers[static_cast<size_t>(l)];
    double* sum = sums + l * C_;
    std::fill(sum, sum + C_, 0.0);
    for (int64_t row = 0; row < inputs_.num_rows; ++row) {
      for (int64_t c = 0; c < C_; ++c) sum[c] += layer[row * C_ + c];
    }
    for (int64_t c = 0; c < C_; ++c) {
      means_[l * C_ + c] = static_cast<float>(sum[c] / static_cast<double>(inputs_.num_rows));
    }
  });
  for (int64_t i = 0; i < L_ * C_; ++i) {
    if (!std::isfinite(means_[i])) {
      invalid("Expected finite hidden states; layers[" + std::to_string(i / C_) + "] has NaN or infinity in column " +
              std::to_string(i % C_) + ".");
    }
  }
}

double Contrast::loss(const std::vector<int64_t>& pairs, const std::vector<double>& weights,
                      std::vector<double>& d_weights) {
  for (int64_t i = 0; i < B_; ++i) {
    rows_[i] = inputs_.queries[pairs[static_cast<size_t>(i)]];
    rows_[B_ + i] = inputs_.targets[pairs[static_cast<size_t>(i)]];
  }
  fuse(weights);
  gemm(context_, B_, B_, C_, {unit_, C_, 1}, {unit_ + B_ * C_, 1, C_}, nullptr, logits_, B_, false);
  const double loss = softmax_loss();
  // Of the cosines: d unit_query = G·unit_target, d unit_target = Gᵀ·unit_query.
  gemm(context_, B_, C_, B_, {logits_, B_, 1}, {unit_ + B_ * C_, C_, 1}, nullptr, d_unit_, C_, false);
  gemm(context_, B_, C_, B_, {logits_, 1, B_}, {unit_, C_, 1}, nullptr, d_unit_ + B_ * C_, C_, false);
  differentiate(d_weights);
  return loss;
}

void Contrast::fuse(const std::vector<double>& weights) {
  context_.pool.parallel_for(2 * B_, [&](int64_t i, int) {
    float* fused = unit_ + i * C_;
    std::fill(fused, fused + C_, 0.0f);
    for (int64_t l = 0; l < L_; ++l) {
      const float* x = inputs_.layers[static_cast<size_t>(l)] + rows_[i] * C_;
      const float* mean = means_ + l * C_;
      const float weight = static_cast<float>(weights[static_cast<size_t>(l)]);
      for (int64_t c = 0; c < C_; ++c) fused[c] += weight * (x[c] - mean[c]);
    }
    const double length = std::sqrt(sum_columns(C_, [&](int64_t c) { return double{fused[c]} * fused[c]; }));
    inverse_lengths_[i] = length > std::numeric_limits<float>::min() ? static_cast<float>(1 / length) : 0.0f;
    for (int64_t c = 0; c < C_; ++c) fused[c] *= inverse_lengths_[i];
  });
}

// logits_: in, the cosines; out, the gradient of the mean loss with respect to them.
double Contrast::softmax_loss() {
  context_.pool.parallel_for(B_, [&](int64_t i, int) {
    float* row = logits_ + i * B_;
    auto is_negative = [&](int64_t j) { return rows_[B_ + j] != rows_[B_ + i]; };
    const double own = row[i] / kTemperature;
    double highest = own;
    for (int64_t j = 0; j < B_; ++j) {
      if (is_negative(j)) highest = std::max(highest, double{row[j] / kTemperature});
    }
    double sum = std::exp(own - highest);
    for (int64_t j = 0; j < B_; ++j) {
      if (is_negative(j)) sum += std::exp(row[j] / kTemperature - highest);
    }
    losses_[i] = highest + std::log(sum) - own;
    const double scale = 1 / (kTemperature * static_cast<double>(B_));
    for (int64_t j = 0; j < B_; ++j) {
      const double probability = std::exp(row[j] / kTemperature - highest) / sum;
      const double gradient = j == i ? probability - 1 : is_negative(j) ? probability : 0;
      row[j] = static_cast<float>(gradient * scale);
    }
  });
  double total = 0;
  for (int64_t i = 0; i < B_; ++i) total += losses_[i];
  return total / static_cast<double>(B_);
}

void Contrast::differentiate(std::vector<double>& d_weights) {
  context_.pool.parallel_for(2 * B_, [&](int64_t i, int) {
    const float* unit = unit_ + i * C_;
    float* d_fused = d_unit_ + i * C_;
    const double along = sum_columns(C_, [&](int64_t c) { return double{unit[c]} * d_fused[c]; });
    for (int64_t c = 0; c < C_; ++c) {
      d_fused[c] = inverse_lengths_[i] * (d_fused[c] - static_cast<float>(along) * unit[c]);
    }
    for (int64_t l = 0; l < L_; ++l) {
      const float* x = inputs_.layers[static_cast<size_t>(l)] + rows_[i] * C_;
      const float* mean = means_ + l * C_;
      d_mix_[i * L_ + l] = sum_columns(C_, [&](int64_t c) { return double{d_fused[c]} * (x[c] - mean[c]); });
    }
  });
  std::fill(d_weights.begin(), d_weights.end(), 0.0);
  for (int64_t i = 0; i < 2 * B_; ++i) {
    for (int64_t l = 0; l < L_; ++l) d_weights[static_cast<size_t>(l)] += d_mix_[i * L_ + l];
  }
}

double mean(const std::vector<double>& values, size_t begin, size_t end) {
  return std::accumulate(values.begin() + static_cast<int64_t>(begin), values.begin() + static_cast<int64_t>(end),
                         0.0) /
         static_cast<double>(end - begin);
}

}  // namespace

LayerWeightsResult learn_layer_weights(Context& context, Arena& arena, const LayerWeightsInputs& inputs) {
  check_inputs(inputs);
  arena.reset();
  Contrast contrast(context, arena, inputs);
  const size_t num_layers = inputs.layers.size();
  const auto batch_pairs = static_cast<size_t>(contrast.num_pairs());
  std::vector<double> logits(num_layers), d_weights(num_layers), d_logits(num_layers), losses;
  Adam adam(num_layers);
  std::vector<int64_t> order(static_cast<size_t>(inputs.num_pairs)), pairs;
  std::iota(order.begin(), order.end(), int64_t{0});
  const Philox random{inputs.seed, kBatchStream};
  uint64_t draw = 0;
  for (int64_t step = 0; step < inputs.num_steps; ++step) {
    // The first places of a Fisher–Yates shuffle: distinct pairs, whatever order the last step left.
    for (size_t i = 0; i < batch_pairs; ++i) {
      const uint64_t places = order.size() - i;
      std::swap(order[i], order[i + ((random.word(draw++) * places) >> 32)]);
    }
    pairs.assign(order.begin(), order.begin() + contrast.num_pairs());
    const std::vector<double> weights = softmax(logits);
    losses.push_back(contrast.loss(pairs, weights, d_weights));
    const double expected = std::inner_product(weights.begin(), weights.end(), d_weights.begin(), 0.0);
    for (size_t l = 0; l < num_layers; ++l) d_logits[l] = weights[l] * (d_weights[l] - expected);
    adam.update(d_logits, logits);
  }
  const std::vector<double> weights = softmax(logits);
  const size_t tenth = std::max<size_t>(1, losses.size() / 10);
  return {std::vector<float>(weights.begin(), weights.end()), mean(losses, 0, tenth),
          mean(losses, losses.size() - tenth, losses.size())};
}

}  // namespace limbeck
