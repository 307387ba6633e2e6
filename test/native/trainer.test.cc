#include "train/trainer.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/rng.h"
#include "model_configs.h"
#include "test.h"

using namespace limbeck;

namespace {

TransformerConfig shape(int64_t hidden_size, int64_t num_layers, int64_t num_heads) {
  return gpt2_config({13, hidden_size, num_layers, num_heads, 10, 8});
}

const std::vector<int32_t> kIds = {1, 5, 3, 7, 2, 2, 9, 4, 10};
const std::vector<int32_t> kOffsets = {0, 4, 6, 9};
const std::vector<int32_t> kLabels = {5, 3, 7, -100, 2, -100, 4, 10, -100};
constexpr int64_t kTokens = 9, kTopK = 3;

/// A student of two blocks and three teachers: two models of other shapes, and lists of logits.
struct Problem {
  Problem() : student(std::make_shared<Transformer>(shape(8, 2, 2))), deep(shape(12, 3, 2)), wide(shape(16, 2, 2)) {
    student->initialize(1, 0.3f);
    deep.initialize(2, 0.3f);
    wide.initialize(3, 0.3f);
    const Philox random{5, 0};
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      indices.push_back(static_cast<int32_t>((i * 5) % 13));  // distinct within a row
      values.push_back(random.normal(static_cast<uint64_t>(i)));
    }
    log_sum_exp.assign(kTokens, 3.0f);
    indices[3 * 1 + 2] = -1;                                      // the second row lists two
    for (int64_t i = 0; i < kTopK; ++i) indices[3 * 2 + i] = -1;  // the third none
    inputs.batch = {kIds.data(), kOffsets.data(), nullptr, kTokens, 3};
    inputs.labels = kLabels.data();
    inputs.weights.ce = 0.6f;
    inputs.weights.kd = 0.7f;
    inputs.weights.hidden = 0.5f;
    inputs.weights.attention = 0.8f;
    inputs.weights.relation = 0.9f;
  }

  TeacherSignal deep_teacher(float weight) const {
    TeacherSignal signal;
    signal.weight = weight;
    signal.model = &deep;
    signal.layer_map = {{1, 2}, {2, 3}};
    signal.relation_heads = 4;
    return signal;
  }

  TeacherSignal wide_teacher(float weight) const {
    TeacherSignal signal;
    signal.weight = weight;
    signal.model = &wide;
    signal.layer_map = {{2, 1}};
    signal.relation_heads = 2;
    return signal;
  }

  TeacherSignal listing_teacher(float weight) const {
    TeacherSignal signal;
    signal.weight = weight;
    signal.top_k = kTopK;
    signal.top_k_indices = indices.data();
    signal.top_k_values = values.data();
    signal.log_sum_exp = log_sum_exp.data();
    return signal;
  }

  StepResult gradients(Trainer& trainer) {
    Context context{pool, scratch};
    return trainer.compute_gradients(context, arena, inputs);
  }

  std::shared_ptr<Transformer> student;
  Transformer deep, wide;
  std::vector<int32_t> indices;
  std::vector<float> values, log_sum_exp;
  StepInputs inputs{};
  ThreadPool pool{2};
  Arena scratch, arena;
};

Trainer trainer_of(const Problem& problem) {
  OptimizerOptions options;
  options.kind = OptimizerKind::kNone;
  return Trainer(problem.student, options);
}

std::vector<float> gradients_of(const Problem& problem) {
  const Parameters& parameters = problem.student->parameters();
  const float* flat = const_cast<Parameters&>(parameters).gradients();
  return std::vector<float>(flat, flat + parameters.flat_count());
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(double{a[i]} - double{b[i]}));
  return largest;
}

/// The slope of the loss along a direction through `values` is the product of gradient and direction.
void check_slope(Problem& problem, Trainer& trainer, float* values, const std::vector<float>& gradient,
                 const std::vector<float>& direction) {
  constexpr float kStep = 5e-3f;
  const std::vector<float> start(values, values + gradient.size());
  double expected = 0;
  for (size_t i = 0; i < gradient.size(); ++i) expected += double{gradient[i]} * double{direction[i]};
  const auto loss_at = [&](float distance) {
    for (size_t i = 0; i < start.size(); ++i) values[i] = start[i] + distance * direction[i];
    return problem.gradients(trainer).loss;
  };
  const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
  std::copy(start.begin(), start.end(), values);
  CHECK(std::fabs(slope - expected) < 2e-3 * std::fabs(expected) + 2e-4);
}

std::vector<float> unit(std::vector<float> x) {
  double square = 0;
  for (float value : x) square += double{value} * double{value};
  for (float& value : x) value = static_cast<float>(value / std::sqrt(square));
  return x;
}

std::vector<float> random_direction(size_t count, uint64_t stream) {
  const Philox random{9, stream};
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = random.normal(i);
  return unit(x);
}

}  // namespace

TEST("the gradients of a step with three weighted teachers are those of its loss") {
  Problem problem;
  problem.inputs.teachers = {problem.deep_teacher(0.7f), problem.wide_teacher(1.5f), problem.listing_teacher(0.4f)};
  Trainer trainer = trainer_of(problem);
  problem.gradients(trainer);
  CHECK(trainer.projections().size() == 3);
  const std::vector<float> whole = gradients_of(problem);
  std::vector<std::vector<float>> mappings;
  for (const Projection& map : trainer.projections()) {
    mappings.emplace_back(map.gradient.get(), map.gradient.get() + map.count());
  }
  Parameters& parameters = problem.student->parameters();
  for (const Parameter& parameter : parameters.list()) {
    const std::vector<float> gradient(whole.begin() + parameter.offset,
                                      whole.begin() + parameter.offset + parameter.count);
    float* values = parameters.values() + parameter.offset;
    check_slope(problem, trainer, values, gradient, random_direction(gradient.size(), parameter.offset));
    if (parameter.name.find("key") == std::string::npos)
      check_slope(problem, trainer, values, gradient, unit(gradient));
  }
  for (size_t i = 0; i < mappings.size(); ++i) {
    float* values = trainer.projections()[i].weight.get();
    CHECK(trainer.projections()[i].rows == (i < 2 ? 12 : 16));
    check_slope(problem, trainer, values, mappings[i], unit(mappings[i]));
    check_slope(problem, trainer, values, mappings[i], random_direction(mappings[i].size(), i));
  }
}

TEST("each term is the sum of the teachers' terms by weight") {
  Problem problem;
  const auto result_of = [&](std::vector<TeacherSignal> teachers) {
    problem.inputs.teachers = std::move(teachers);
    Trainer trainer = trainer_of(problem);
    // All maps start from the same stream by index; hidden terms are compared on their own below.
    return problem.gradients(trainer);
  };
  problem.inputs.weights.hidden = 0;
  const StepResult deep = result_of({problem.deep_teacher(1)}), wide = result_of({problem.wide_teacher(1)});
  const StepResult both = result_of({problem.deep_teacher(0.3f), problem.wide_teacher(2)});
  CHECK(deep.kd > 0 && wide.kd > 0 && deep.attention > 0 && wide.attention > 0);
  CHECK(std::fabs(both.ce - deep.ce) < 1e-9);
  CHECK(std::fabs(both.kd - (0.3f * deep.kd + 2 * wide.kd)) < 1e-6);
  CHECK(std::fabs(both.attention - (0.3f * deep.attention + 2 * wide.attention)) < 1e-6);
  CHECK(std::fabs(both.relation - (0.3f * deep.relation + 2 * wide.relation)) < 1e-6);
}

TEST("two equal teachers of weight one half are one") {
  Problem problem;
  const auto run = [&](std::vector<TeacherSignal> teachers, size_t num_maps) {
    problem.inputs.teachers = std::move(teachers);
    Trainer trainer = trainer_of(problem);
    for (size_t i = 0; i < num_maps; ++i) {  // the halves begin with the same mappings
      Projection& map = trainer.projection(i, 12, 8);
      const std::vector<float> start = random_direction(static_cast<size_t>(map.count()), i % 2);
      std::copy(start.begin(), start.end(), map.weight.get());
    }
    return problem.gradients(trainer);
  };
  const StepResult one = run({problem.deep_teacher(1)}, 2);
  const std::vector<float> expected = gradients_of(problem);
  const StepResult halves = run({problem.deep_teacher(0.5f), problem.deep_teacher(0.5f)}, 4);
  CHECK(one.hidden > 0);
  CHECK(std::fabs(one.loss - halves.loss) < 1e-6);
  CHECK(std::fabs(one.hidden - halves.hidden) < 1e-6);
  CHECK(largest_difference(expected, gradients_of(problem)) < 1e-6);
}

TEST("teachers without a weight, and terms of which no teacher speaks, are refused") {
  Problem problem;
  Trainer trainer = trainer_of(problem);
  for (const float weight : {0.0f, -1.0f, NAN, INFINITY}) {
    problem.inputs.teachers = {problem.deep_teacher(1), problem.wide_teacher(weight)};
    CHECK_ERROR("ERR_INVALID_ARGUMENT", problem.gradients(trainer));
  }
  problem.inputs.teachers = {problem.listing_teacher(1), problem.listing_teacher(1)};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", problem.gradients(trainer));
  TeacherSignal states = problem.deep_teacher(1);
  states.model = nullptr;
  problem.inputs.teachers = {states};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", problem.gradients(trainer));
  problem.inputs.teachers = {};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", problem.gradients(trainer));
}
