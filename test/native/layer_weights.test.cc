#include "train/layer_weights.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

struct Problem {
  std::vector<std::vector<float>> layers;
  std::vector<int32_t> queries, targets;
  int64_t num_rows, num_columns;
  int64_t num_steps = 100;
  uint64_t seed = 7;

  LayerWeightsInputs inputs() const {
    LayerWeightsInputs inputs{
        {},        num_rows, num_columns, queries.data(), targets.data(), static_cast<int64_t>(queries.size()),
        num_steps, seed};
    for (const std::vector<float>& layer : layers) inputs.layers.push_back(layer.data());
    return inputs;
  }
};

LayerWeightsResult learn(const LayerWeightsInputs& inputs, int num_threads = 1) {
  ThreadPool pool(num_threads);
  Arena scratch, arena;
  Context context{pool, scratch};
  return learn_layer_weights(context, arena, inputs);
}

/// Rows 2i and 2i + 1 share a latent vector in layer `signal`; the other layers are noise, far from the origin.
Problem paired(int64_t num_layers, size_t signal, int64_t num_pairs, int64_t num_columns) {
  Problem problem;
  problem.num_rows = 2 * num_pairs;
  problem.num_columns = num_columns;
  for (int64_t l = 0; l < num_layers; ++l) {
    const Philox own{3, static_cast<uint64_t>(l)}, shared{4, static_cast<uint64_t>(l)};
    std::vector<float> layer(static_cast<size_t>(problem.num_rows * num_columns));
    for (int64_t i = 0; i < problem.num_rows * num_columns; ++i) {
      const int64_t row = i / num_columns, column = i % num_columns;
      const bool carries = static_cast<size_t>(l) == signal;
      layer[static_cast<size_t>(i)] = 5.0f + (carries ? 0.3f : 1.0f) * own.normal(static_cast<uint64_t>(i));
      if (carries) {
        layer[static_cast<size_t>(i)] += shared.normal(static_cast<uint64_t>(row / 2 * num_columns + column));
      }
    }
    problem.layers.push_back(layer);
  }
  for (int32_t i = 0; i < num_pairs; ++i) {
    problem.queries.push_back(2 * i);
    problem.targets.push_back(2 * i + 1);
  }
  return problem;
}

/// The mean loss of all pairs in one batch, in double.
double reference_loss(const Problem& problem, const std::vector<double>& logits) {
  const auto L = problem.layers.size();
  const auto R = static_cast<size_t>(problem.num_rows), C = static_cast<size_t>(problem.num_columns);
  double normaliser = 0;
  for (double logit : logits) normaliser += std::exp(logit);
  std::vector<std::vector<double>> unit(R, std::vector<double>(C, 0));
  for (size_t l = 0; l < L; ++l) {
    const double weight = std::exp(logits[l]) / normaliser;
    for (size_t c = 0; c < C; ++c) {
      double mean = 0;
      for (size_t r = 0; r < R; ++r) mean += problem.layers[l][r * C + c] / static_cast<double>(R);
      for (size_t r = 0; r < R; ++r) unit[r][c] += weight * (problem.layers[l][r * C + c] - mean);
    }
  }
  for (auto& row : unit) {
    double length = 0;
    for (double value : row) length += value * value;
    for (double& value : row) value /= std::sqrt(length);
  }
  const size_t B = problem.queries.size();
  double loss = 0;
  for (size_t i = 0; i < B; ++i) {
    double sum = 0, own = 0;
    for (size_t j = 0; j < B; ++j) {
      if (j != i && problem.targets[j] == problem.targets[i]) continue;
      double cosine = 0;
      for (size_t c = 0; c < C; ++c) {
        cosine += unit[static_cast<size_t>(problem.queries[i])][c] * unit[static_cast<size_t>(problem.targets[j])][c];
      }
      sum += std::exp(cosine / 0.1);
      if (j == i) own = cosine / 0.1;
    }
    loss += (std::log(sum) - own) / static_cast<double>(B);
  }
  return loss;
}

struct Reference {
  std::vector<double> weights, losses;
};

/// Adam (rate 0.05) on finite differences of the reference loss.
Reference reference_learn(const Problem& problem) {
  const size_t L = problem.layers.size();
  constexpr double kDifference = 1e-5;
  std::vector<double> logits(L, 0), first(L, 0), second(L, 0), gradients(L);
  Reference reference;
  for (int step = 1; step <= problem.num_steps; ++step) {
    reference.losses.push_back(reference_loss(problem, logits));
    for (size_t l = 0; l < L; ++l) {
      std::vector<double> above = logits, below = logits;
      above[l] += kDifference;
      below[l] -= kDifference;
      gradients[l] = (reference_loss(problem, above) - reference_loss(problem, below)) / (2 * kDifference);
    }
    for (size_t l = 0; l < L; ++l) {
      first[l] = 0.9 * first[l] + 0.1 * gradients[l];
      second[l] = 0.999 * second[l] + 0.001 * gradients[l] * gradients[l];
      logits[l] -=
          0.05 * (first[l] / (1 - std::pow(0.9, step))) / (std::sqrt(second[l] / (1 - std::pow(0.999, step))) + 1e-8);
    }
  }
  double normaliser = 0;
  for (double logit : logits) normaliser += std::exp(logit);
  for (double logit : logits) reference.weights.push_back(std::exp(logit) / normaliser);
  return reference;
}

}  // namespace

TEST("the layer in which items that follow each other agree gets the weight") {
  for_each_isa([] {
    for (const size_t signal : {0, 1, 3}) {
      const LayerWeightsResult result = learn(paired(4, signal, 300, 20).inputs());
      double sum = 0;
      for (float weight : result.weights) {
        CHECK(weight >= 0);
        sum += weight;
      }
      CHECK(std::fabs(sum - 1) < 1e-6);
      CHECK(result.weights[signal] > 0.8f);
      CHECK(result.last_loss < result.first_loss);
    }
  });
}

TEST("each step follows the gradient of the loss, with pairs that share a target or a row") {
  for_each_isa([] {
    Problem problem = paired(3, 1, 20, 11);
    problem.num_steps = 20;
    problem.targets[4] = problem.targets[9] = problem.targets[2];
    problem.queries[5] = problem.queries[6];
    problem.queries[7] = problem.targets[8];
    const LayerWeightsResult result = learn(problem.inputs());
    const Reference reference = reference_learn(problem);
    for (size_t l = 0; l < 3; ++l) CHECK(std::fabs(result.weights[l] - reference.weights[l]) < 1e-4);
    CHECK(std::fabs(result.first_loss - (reference.losses[0] + reference.losses[1]) / 2) < 1e-4);
    CHECK(std::fabs(result.last_loss - (reference.losses[18] + reference.losses[19]) / 2) < 1e-4);
  });
}

TEST("weights and losses have the same bits on any number of threads, and follow the seed") {
  Problem problem = paired(5, 2, 200, 33);
  problem.num_steps = 30;
  const LayerWeightsResult one = learn(problem.inputs(), 1);
  for (const int num_threads : {2, 3}) {
    const LayerWeightsResult other = learn(problem.inputs(), num_threads);
    CHECK(other.weights == one.weights);
    CHECK(other.first_loss == one.first_loss && other.last_loss == one.last_loss);
  }
  problem.seed = 8;
  CHECK(learn(problem.inputs()).weights != one.weights);
}

TEST("layers without a direction leave the weights where they were") {
  Problem problem = paired(2, 0, 10, 4);
  for (auto& layer : problem.layers) layer.assign(layer.size(), 3.0f);
  const LayerWeightsResult result = learn(problem.inputs());
  CHECK(result.weights == std::vector<float>({0.5f, 0.5f}));
  CHECK(std::fabs(result.first_loss - std::log(10.0)) < 1e-6);
}

TEST("learn_layer_weights refuses rows out of range, too few pairs, no layers, no steps and NaN") {
  const Problem good = paired(2, 0, 4, 3);
  auto refuses = [](const LayerWeightsInputs& inputs) { CHECK_ERROR("ERR_INVALID_ARGUMENT", learn(inputs)); };
  Problem problem = good;
  problem.queries[3] = 8;
  refuses(problem.inputs());
  problem = good;
  problem.targets[0] = -1;
  refuses(problem.inputs());
  problem = good;
  problem.queries.resize(1);
  refuses(problem.inputs());
  problem = good;
  problem.layers.clear();
  refuses(problem.inputs());
  problem = good;
  problem.num_steps = 0;
  refuses(problem.inputs());
  problem = good;
  problem.layers[1][5] = std::numeric_limits<float>::quiet_NaN();
  refuses(problem.inputs());
}
