#include "model/adapter.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "model/generate.h"
#include "model/project.h"
#include "model_configs.h"
#include "retrieve/text_encoder.h"
#include "test.h"
#include "train/importance.h"
#include "train/trainer.h"

using namespace limbeck;

namespace {

constexpr ModelSizes kSizes{19, 12, 2, 2, 20, 10};

TransformerConfig gpt2_like() { return gpt2_config(kSizes); }

/// Grouped heads, gate and up in one product, norms of queries and keys.
TransformerConfig qwen3_like() {
  TransformerConfig config = gpt2_like();
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.norm = NormKind::kRmsNorm;
  config.positions = PositionKind::kRotary;
  config.rope_theta = 10000;
  config.hidden_act = Activation::kSwiglu;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = false;
  config.tie_word_embeddings = false;
  config.qk_norm = true;
  return config;
}

TransformerConfig bert_like() { return bert_config(kSizes); }

const std::vector<TransformerConfig>& configs() {
  static const std::vector<TransformerConfig> list = {gpt2_like(), qwen3_like(), bert_like()};
  return list;
}

/// All four linear layers of every block; of the first one in parts, as families have them that store them apart.
AdapterConfig everywhere(const TransformerConfig& config) {
  AdapterConfig adapter{3, 0.7f, 0, {}};
  const int64_t queries = config.attention_size(), keys = config.num_key_value_heads * config.head_dim;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const std::string block = "layers." + std::to_string(l) + ".", name = "m" + std::to_string(l);
    if (l == 0) {
      adapter.targets.push_back({name + ".q", block + "attention.qkv", 0, queries});
      adapter.targets.push_back({name + ".v", block + "attention.qkv", queries + keys, keys});
    } else {
      adapter.targets.push_back({name + ".qkv", block + "attention.qkv", 0, config.qkv_size()});
    }
    adapter.targets.push_back({name + ".o", block + "attention.output", 0, config.hidden_size});
    const int64_t half = config.mlp_input_size() / 2;
    adapter.targets.push_back({name + ".up", block + "mlp.input", half, half});
    if (l == 0) adapter.targets.push_back({name + ".gate", block + "mlp.input", 0, half});
    adapter.targets.push_back({name + ".down", block + "mlp.output", 0, config.hidden_size});
  }
  return adapter;
}

void randomise(Parameters& parameters, float scale, uint64_t seed) {
  uint64_t stream = 0;
  for (const Parameter& parameter : parameters.list()) {
    const Philox random{seed, stream++};
    for (int64_t i = 0; i < parameter.count; ++i) {
      parameters.values()[parameter.offset + i] = scale * random.normal(static_cast<uint64_t>(i));
    }
  }
}

std::shared_ptr<Transformer> random_model(const TransformerConfig& config) {
  auto model = std::make_shared<Transformer>(config);
  randomise(model->parameters(), 0.4f, 5);
  return model;
}

const std::vector<int32_t> kIds = {1, 5, 3, 7, 2, 2, 9, 4, 10, 18, 0, 6};
const std::vector<int32_t> kOffsets = {0, 7, 8, 12};
const std::vector<int32_t> kLabels = {5, 3, 7, -100, 2, 9, -100, 1, 10, -100, 0, 12};
const Batch kBatch{kIds.data(), kOffsets.data(), nullptr, 12, 3};

struct Machine {
  ThreadPool pool{2};
  Arena scratch, arena;
  Context context{pool, scratch};
};

std::vector<float> last_hidden(const Transformer& model, ForwardOptions options = {}) {
  Machine machine;
  const TransformerConfig& config = model.config();
  const Activations a = model.forward(machine.context, machine.arena, kBatch, options);
  const int64_t rows = options.last_rows_only ? kBatch.num_sequences : kBatch.num_tokens;
  const float* hidden = a.hidden[config.num_hidden_layers];
  return {hidden, hidden + rows * config.hidden_size};
}

double relative_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double difference = 0, largest = 1e-6;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) || std::isnan(y[i])) return INFINITY;
    difference = std::max(difference, std::fabs(double{x[i]} - double{y[i]}));
    largest = std::max(largest, std::fabs(double{y[i]}));
  }
  return x.size() == y.size() ? difference / largest : INFINITY;
}

StepInputs step_inputs() {
  StepInputs inputs{};
  inputs.batch = kBatch;
  inputs.labels = kLabels.data();
  inputs.learning_rate = 0.01f;
  return inputs;
}

std::vector<float> copy(const float* values, int64_t count) { return {values, values + count}; }

}  // namespace

TEST("an adapter starts without effect, with A spread as PEFT's") {
  for (const TransformerConfig& config : configs()) {
    const auto model = random_model(config);
    const std::vector<float> before = last_hidden(*model);
    model->attach_adapter(everywhere(config), 3);
    CHECK(last_hidden(*model) == before);
    const Adapter& adapter = *model->adapter();
    for (const AdapterTarget& target : adapter.config().targets) {
      const Parameter &a = adapter.a(target), &b = adapter.b(target);
      const float bound = 1 / std::sqrt(static_cast<float>(a.shape[1]));
      const float* values = adapter.parameters().values();
      float largest = 0;
      for (int64_t i = 0; i < a.count; ++i) largest = std::max(largest, std::fabs(values[a.offset + i]));
      CHECK(largest <= bound && largest > 0.8f * bound);
      for (int64_t i = 0; i < b.count; ++i) CHECK(values[b.offset + i] == 0);
    }
  }
}

TEST("a merged model computes what the adapted one does, whole, in its last rows, and token by token") {
  for (const TransformerConfig& config : configs()) {
    const auto adapted = random_model(config), merged = random_model(config);
    const std::vector<float> base = last_hidden(*adapted);
    for (Transformer* model : {adapted.get(), merged.get()}) {
      model->attach_adapter(everywhere(config), 3);
      randomise(model->trainable(), 0.5f, 9);
    }
    Machine machine;
    merged->merge_adapter(machine.context);
    CHECK(merged->adapter() == nullptr);
    CHECK(relative_difference(last_hidden(*adapted), last_hidden(*merged)) < 2e-5);
    CHECK(relative_difference(last_hidden(*adapted), base) > 0.05);
    ForwardOptions last_rows;
    last_rows.last_rows_only = true;
    CHECK(relative_difference(last_hidden(*adapted, last_rows), last_hidden(*merged, last_rows)) < 2e-5);
    // With packed weights the base product goes another way.
    adapted->pack_weights(machine.context);
    CHECK(relative_difference(last_hidden(*adapted), last_hidden(*merged)) < 2e-5);
    // Every parameter as the adapted model computes with it is that of the merged one.
    for (const Parameter& parameter : merged->parameters().list()) {
      std::vector<float> values(static_cast<size_t>(parameter.count), NAN);
      adapted->effective_values(machine.context, parameter, values.data());
      CHECK(values == copy(merged->parameters().values() + parameter.offset, parameter.count));
    }
    const std::vector<ProjectedParameter> projected =
        project(machine.context, *adapted, config, {{1, 2}, WidthMap::kSelection, nullptr, {}});
    for (const ProjectedParameter& parameter : projected) {
      const Parameter& into = merged->parameters().find(parameter.name);
      CHECK(parameter.values == copy(merged->parameters().values() + into.offset, into.count));
    }
  }
}

TEST("gradients of an adapter are those of the loss, and nothing else gets any") {
  for (const TransformerConfig& config : configs()) {
    for (const float dropout : {0.0f, 0.3f}) {
      for (const int64_t negatives : {int64_t{0}, int64_t{6}}) {
        const auto model = random_model(config);
        AdapterConfig adapter = everywhere(config);
        adapter.dropout = dropout;
        model->attach_adapter(adapter, 3);
        randomise(model->trainable(), 0.3f, 9);
        OptimizerOptions options;
        options.kind = OptimizerKind::kNone;
        Trainer trainer(model, options);
        Machine machine;
        StepInputs inputs = step_inputs();
        inputs.dropout_seed = 77;  // fixed: the masks are the same at every call
        inputs.sampled_negatives = negatives;
        const double loss = trainer.compute_gradients(machine.context, machine.arena, inputs).loss;
        Parameters& parameters = model->trainable();
        const std::vector<float> gradients = copy(parameters.gradients(), parameters.flat_count());
        CHECK(!model->parameters().has_gradients());
        if (dropout > 0) {
          inputs.dropout_seed = 78;
          CHECK(trainer.compute_gradients(machine.context, machine.arena, inputs).loss != loss);
          inputs.dropout_seed = 77;
        }
        for (const Parameter& parameter : parameters.list()) {
          // Along a direction, so that every element counts; in single precision, so with a step that is not small.
          double square = 0, derivative = 0;
          for (int64_t i = 0; i < parameter.count; ++i) {
            const double g = gradients[static_cast<size_t>(parameter.offset + i)];
            square += g * g;
          }
          const double norm = std::sqrt(square), step = 5e-3;
          CHECK(norm > 1e-5);
          const std::vector<float> values = copy(parameters.values() + parameter.offset, parameter.count);
          for (const double sign : {1.0, -1.0}) {
            for (int64_t i = 0; i < parameter.count; ++i) {
              const double g = gradients[static_cast<size_t>(parameter.offset + i)];
              parameters.values()[parameter.offset + i] =
                  values[static_cast<size_t>(i)] + static_cast<float>(sign * step * g / norm);
            }
            derivative += sign * trainer.compute_gradients(machine.context, machine.arena, inputs).loss / (2 * step);
          }
          std::memcpy(parameters.values() + parameter.offset, values.data(), values.size() * sizeof(float));
          CHECK(std::fabs(derivative - norm) < 0.01 * norm + 2e-4);
        }
      }
    }
  }
}

TEST("steps change the adapter alone; without it the model is what it was, to the bit") {
  for (const TransformerConfig& config : configs()) {
    const auto model = random_model(config);
    const std::vector<float> before = copy(model->parameters().values(), model->parameters().flat_count());
    const std::vector<float> hidden = last_hidden(*model);
    model->attach_adapter(everywhere(config), 3);
    Trainer trainer(model, {});
    CHECK(trainer.flat_count() == model->trainable().flat_count());
    Machine machine;
    double first = 0, last = 0;
    for (int step = 0; step < 100; ++step) {
      last = trainer.step(machine.context, machine.arena, step_inputs()).loss;
      if (step == 0) first = last;
    }
    CHECK(last < 0.8 * first);
    CHECK(!model->parameters().has_gradients());
    CHECK(last_hidden(*model) != hidden);
    model->remove_adapter();
    CHECK(copy(std::as_const(*model).parameters().values(), model->parameters().flat_count()) == before);
    CHECK(last_hidden(*model) == hidden);
    // Its trainer has moments of another shape.
    CHECK_ERROR("ERR_INVALID_ARGUMENT", trainer.step(machine.context, machine.arena, step_inputs()));
    Trainer again(model, {});
    CHECK(again.step(machine.context, machine.arena, step_inputs()).grad_norm > 0);
  }
}

TEST("an adapted model teaches, generates and encodes with its adapter") {
  const TransformerConfig config = qwen3_like();
  const auto adapted = random_model(config), merged = random_model(config), student = random_model(config);
  for (Transformer* model : {adapted.get(), merged.get()}) {
    model->attach_adapter(everywhere(config), 3);
    randomise(model->trainable(), 0.5f, 9);
  }
  Machine machine;
  merged->merge_adapter(machine.context);
  randomise(student->parameters(), 0.3f, 6);
  std::vector<double> divergences;
  for (const Transformer* teacher : {adapted.get(), merged.get(), student.get()}) {
    TeacherSignal signal;
    signal.model = teacher;
    StepInputs inputs = step_inputs();
    inputs.teachers = {signal};
    inputs.weights.kd = 1;
    Trainer trainer(student, {});
    divergences.push_back(trainer.compute_gradients(machine.context, machine.arena, inputs).kd);
  }
  CHECK(std::fabs(divergences[0] - divergences[1]) < 1e-4 * divergences[1]);
  CHECK(divergences[1] > 0.01 && divergences[2] < 1e-6);

  TextFusion fusion;
  fusion.layers = {2};
  fusion.weights = {1};
  fusion.mean.assign(static_cast<size_t>(config.hidden_size), 0);
  fusion.components.assign(static_cast<size_t>(config.hidden_size * config.hidden_size), 0);
  for (int64_t i = 0; i < config.hidden_size; ++i) {
    fusion.components[static_cast<size_t>(i * config.hidden_size + i)] = 1;
  }
  std::vector<std::vector<float>> encoded;
  for (const auto& model : {adapted, merged}) {
    const TextModel encoder(*model, fusion);
    Arena arena;
    std::vector<float> features(static_cast<size_t>(kBatch.num_sequences * config.hidden_size), NAN);
    encoder.encode(machine.context, arena, kBatch, features.data());
    encoded.push_back(features);
  }
  CHECK(encoded[0] == encoded[1]);

  std::vector<std::vector<int32_t>> continued;
  for (const auto& model : {adapted, merged}) {
    Generation generation(*model, {3, 1, 4}, {7, 0, 0, 0, {}});
    continued.push_back(generation.next(machine.context, machine.arena, 7, {}));
  }
  CHECK(continued[0].size() == 7 && continued[0] == continued[1]);
}

TEST("a text on its way ends when the adapter of its model is trained, comes or goes") {
  const auto model = random_model(gpt2_like());
  Machine machine;
  const auto changed = [&](auto&& change) {
    Generation generation(*model, {3, 1, 4}, {7, 0, 0, 0, {}});
    generation.next(machine.context, machine.arena, 2, {});
    change();
    CHECK_ERROR("ERR_INVALID_ARGUMENT", generation.next(machine.context, machine.arena, 2, {}));
  };
  changed([&] { model->attach_adapter(everywhere(model->config()), 3); });
  changed([&] { Trainer(model, {}).step(machine.context, machine.arena, step_inputs()); });
  changed([&] { model->remove_adapter(); });
}

TEST("an adapter that does not fit is refused") {
  const TransformerConfig config = gpt2_like();
  const auto model = random_model(config);
  const auto refused = [&](AdapterConfig adapter) {
    CHECK_ERROR("ERR_INVALID_ARGUMENT", model->attach_adapter(adapter, 0));
    CHECK(model->adapter() == nullptr);
  };
  const int64_t d = config.hidden_size;
  refused({0, 1, 0, {{"a", "layers.0.mlp.output", 0, d}}});
  refused({1, NAN, 0, {{"a", "layers.0.mlp.output", 0, d}}});
  refused({1, 1, 1.0f, {{"a", "layers.0.mlp.output", 0, d}}});
  refused({1, 1, 0, {}});
  refused({1, 1, 0, {{"a", "layers.2.mlp.output", 0, d}}});
  refused({1, 1, 0, {{"a", "layers.0.mlp_norm", 0, d}}});
  refused({1, 1, 0, {{"a", "embeddings.word", 0, d}}});
  refused({1, 1, 0, {{"a", "layers.0", 0, d}}});
  refused({1, 1, 0, {{"a", "layers.0.mlp.output", 1, d}}});
  refused({1, 1, 0, {{"a", "layers.0.mlp.output", -1, d}}});
  refused({1, 1, 0, {{"a", "layers.0.mlp.output", 0, 0}}});
  refused({1, 1, 0, {{"a", "layers.0.mlp.output", 0, d}, {"a", "layers.1.mlp.output", 0, d}}});
  model->attach_adapter(everywhere(config), 0);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", model->attach_adapter(everywhere(config), 0));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", Importance{model});
}
