#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cuda/api.h"
#include "cuda/device_code.h"
#include "model/inference.h"
#include "model_configs.h"
#include "ops/half.h"
#include "test.h"
#include "train/micro_batches.h"
#ifdef LIMBECK_CUDA_EMULATED
#include "cuda/emulator/runtime.h"
#endif

// Whole models: what the library answers through its interface is compared with the CPU's passes, which are compared
// with float64 elsewhere.

namespace {

using namespace limbeck;
namespace api = limbeck::cuda;

const api::Api& library() { return *limbeck_cuda_api(api::kApiVersion); }

template <typename T>
T* made(T* pointer, const api::ApiError& error) {
  if (pointer == nullptr) throw Error("ERR_CUDA", std::string(error.code) + ": " + error.message);
  return pointer;
}
void done(int32_t status, const api::ApiError& error) {
  if (status != 0) throw Error("ERR_CUDA", std::string(error.code) + ": " + error.message);
}

TransformerConfig base_config() {
  TransformerConfig config = gpt2_config({61, 24, 3, 3, 40, 32});
  config.rope_theta = 10000;
  return config;
}

TransformerConfig bert_config() {
  TransformerConfig config = base_config();
  config.norm_placement = NormPlacement::kAfter;
  config.causal = false;
  config.hidden_act = Activation::kGeluErf;
  config.type_vocab_size = 2;
  config.masked_lm_head = true;
  return config;
}

TransformerConfig llama_config() {
  TransformerConfig config = base_config();
  config.norm = NormKind::kRmsNorm;
  config.positions = PositionKind::kRotary;
  config.hidden_act = Activation::kSwiglu;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = false;
  config.tie_word_embeddings = false;
  config.qk_norm = true;
  config.sliding_window = 5;
  config.max_window_layers = 1;
  return config;
}

TransformerConfig sequence_config() {
  TransformerConfig config = base_config();
  config.item_feature_size = 10;
  config.norm_placement = NormPlacement::kAfter;
  return config;
}

std::vector<float> random_values(int64_t count, uint64_t stream, float range) {
  const Philox random{7, stream};
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = range * random.normal(i);
  return values;
}

struct BatchData {
  std::vector<int32_t> ids, offsets, types, labels;
  Batch view(const TransformerConfig& config) const {
    return {ids.data(), offsets.data(), config.type_vocab_size > 0 ? types.data() : nullptr,
            static_cast<int64_t>(ids.size()), static_cast<int64_t>(offsets.size()) - 1};
  }
  api::ApiBatch api_view(const TransformerConfig& config) const {
    const Batch batch = view(config);
    return {batch.input_ids, batch.sequence_offsets, batch.token_type_ids, batch.num_tokens, batch.num_sequences};
  }
};

BatchData make_batch(const TransformerConfig& config) {
  BatchData data;
  data.offsets = {0};
  const Philox random{11, 3};
  uint64_t word = 0;
  for (int length : {7, 1, 18, 11}) {
    for (int i = 0; i < length; ++i) {
      const auto id = static_cast<int32_t>(random.word(word++) % static_cast<uint32_t>(config.vocab_size));
      data.ids.push_back(id);
      data.types.push_back(i % 2);
      // The last token of a sequence has no next one.
      data.labels.push_back(i + 1 == length ? -100 : static_cast<int32_t>((id * 5 + 3) % config.vocab_size));
    }
    data.offsets.push_back(static_cast<int32_t>(data.ids.size()));
  }
  return data;
}

/// The same model here and there.
struct Pair {
  Pair(const TransformerConfig& config, api::ApiPrecision precision, uint64_t seed, api::Engine* shared = nullptr)
      : host(std::make_shared<Transformer>(config)) {
    api::ApiError error{};
    engine = shared != nullptr ? shared : made(library().create_engine(0, precision, &error), error);
    owns_engine = shared == nullptr;
    host->initialize(seed, 0.2f);
    Parameters& parameters = host->parameters();
    // Gains and biases away from 1 and 0, so that they matter.
    for (const Parameter& parameter : parameters.list()) {
      if (parameter.shape.size() != 1) continue;
      const std::vector<float> noise =
          random_values(parameter.count, 100 + static_cast<uint64_t>(parameter.offset), 0.1f);
      for (int64_t i = 0; i < parameter.count; ++i)
        parameters.values()[parameter.offset + i] += noise[static_cast<size_t>(i)];
    }
    model = made(library().create_model(engine, &config, sizeof(config), &error), error);
    done(library().set_parameters(model, host->parameters().values(), &error), error);
    if (config.item_feature_size > 0) {
      const std::vector<float> features = random_values(config.vocab_size * config.item_feature_size, 55, 0.3f);
      host->set_item_features(features.data());
      done(library().set_item_features(model, features.data(), &error), error);
    }
  }
  ~Pair() {
    library().destroy_model(model);
    if (owns_engine) library().destroy_engine(engine);
  }
  Pair(const Pair&) = delete;

  std::shared_ptr<Transformer> host;
  api::Engine* engine;
  bool owns_engine;
  api::Model* model;
};

/// ‖a − b‖/‖b‖; infinite where something is no number.
double distance(const float* a, const float* b, int64_t count) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  const double result = std::sqrt(difference / std::max(norm, 1e-30));
  return std::isfinite(result) ? result : std::numeric_limits<double>::infinity();
}

bool is_near(double value, double expected, double tolerance) {
  return std::fabs(value - expected) <= tolerance * (std::fabs(expected) + 1e-3);
}

struct Runtime {
  ThreadPool pool{1};
  Arena scratch, arena;
  Context context{pool, scratch};
};

void check_forward(const TransformerConfig& config, api::ApiPrecision precision, double tolerance) {
  const Pair pair(config, precision, 5);
  const BatchData data = make_batch(config);
  const int64_t N = static_cast<int64_t>(data.ids.size()), d = config.hidden_size, V = config.vocab_size, K = 5;
  const int64_t S = static_cast<int64_t>(data.offsets.size()) - 1, A = 2;
  Runtime runtime;
  for (const Pooling pooling : {Pooling::kNone, Pooling::kMean, Pooling::kLast, Pooling::kCls, Pooling::kAttention}) {
    ForwardInputs inputs;
    inputs.batch = data.view(config);
    const std::vector<int64_t> layers = {0, 1, config.num_hidden_layers, 1};  // one of them twice
    inputs.hidden_states = layers;
    inputs.pooling = pooling;
    inputs.attentions = {2};
    inputs.value_relations = {1, 3};
    inputs.relation_heads = A;
    inputs.logits = LogitsForm::kDense;
    inputs.labels = data.labels.data();
    const ForwardOutputs expected = run_forward(runtime.context, runtime.arena, *pair.host, inputs);
    inputs.logits = LogitsForm::kTopK;
    inputs.top_k = K;
    const ForwardOutputs expected_top = run_forward(runtime.context, runtime.arena, *pair.host, inputs);

    const int64_t rows = pooling == Pooling::kNone ? N : S;
    std::vector<std::vector<float>> hidden(layers.size(), std::vector<float>(static_cast<size_t>(rows * d), NAN));
    std::vector<void*> hidden_out;
    for (std::vector<float>& states : hidden) hidden_out.push_back(states.data());
    std::vector<float> attention(static_cast<size_t>(expected.attentions[0].count()), NAN);
    float* attentions_out[] = {attention.data()};
    std::vector<std::vector<float>> relation(
        2, std::vector<float>(static_cast<size_t>(expected.value_relations[0].count()), NAN));
    float* relations_out[] = {relation[0].data(), relation[1].data()};
    std::vector<float> logits(static_cast<size_t>(N * V), NAN), values(static_cast<size_t>(N * K), NAN),
        lse(static_cast<size_t>(N), NAN);
    std::vector<int32_t> indices(static_cast<size_t>(N * K), -7);
    double loss_sum = NAN;
    const int64_t attention_layers[] = {2}, relation_layers[] = {1, 3};
    api::ApiForward request{};
    request.batch = data.api_view(config);
    request.hidden_states = layers.data();
    request.num_hidden_states = static_cast<int64_t>(layers.size());
    request.pooling = static_cast<api::ApiPooling>(pooling);
    request.hidden_out = hidden_out.data();
    request.attentions = attention_layers;
    request.num_attentions = 1;
    request.attentions_out = attentions_out;
    request.value_relations = relation_layers;
    request.num_value_relations = 2;
    request.relation_heads = A;
    request.value_relations_out = relations_out;
    request.logits_out = logits.data();
    request.top_k = K;
    request.top_k_indices = indices.data();
    request.top_k_values = values.data();
    request.log_sum_exp = lse.data();
    request.labels = data.labels.data();
    request.loss_sum = &loss_sum;
    api::ApiError error{};
    done(library().forward(pair.model, &request, &error), error);
    for (size_t i = 0; i < layers.size(); ++i) {
      CHECK(distance(hidden[i].data(), expected.hidden_states[i].data(), rows * d) < tolerance);
    }
    CHECK(distance(attention.data(), expected.attentions[0].data(), expected.attentions[0].count()) < tolerance);
    for (size_t i = 0; i < 2; ++i) {
      CHECK(distance(relation[i].data(), expected.value_relations[i].data(), expected.value_relations[i].count()) <
            tolerance);
    }
    CHECK(distance(logits.data(), expected.logits.data(), N * V) < tolerance);
    CHECK(distance(values.data(), expected_top.top_k_values.data(), N * K) < tolerance);
    CHECK(distance(lse.data(), expected_top.log_sum_exp.data(), N) < tolerance);
    if (precision == api::ApiPrecision::kFloat32) CHECK(indices == expected_top.top_k_indices);
    CHECK(is_near(loss_sum, expected.loss_sum, tolerance));
  }
}

/// `step` for each of its parts, which must live as long.
std::vector<api::ApiStep> steps_of(const std::vector<MicroBatch>& parts, const api::ApiStep& step) {
  std::vector<api::ApiStep> steps;
  for (const MicroBatch& part : parts) {
    const StepInputs own = part.inputs();
    steps.push_back(step);
    steps.back().batch = {own.batch.input_ids,     own.batch.sequence_offsets, own.batch.token_type_ids,
                          own.batch.num_tokens,    own.batch.num_sequences,    own.batch.tokens_before,
                          own.batch.squares_before};
    steps.back().labels = own.labels;
    steps.back().step_tokens = own.step_tokens;
    steps.back().step_labels = own.step_labels;
  }
  return steps;
}

/// A cosine below 1 − tolerance² / 2 or so would show in the distance as well. The GPU takes its steps in micro batches
/// of so many tokens, the CPU whole.
void check_training(const TransformerConfig& config, api::ApiPrecision precision, double tolerance, bool has_teacher,
                    int64_t sampled_negatives, float dropout, int64_t micro_batch_tokens = 0) {
  TransformerConfig student_config = config;
  student_config.embedding_dropout = student_config.attention_dropout = student_config.hidden_dropout = dropout;
  const Pair student(student_config, precision, 5);
  TransformerConfig teacher_config = config;
  teacher_config.num_hidden_layers = 4;
  teacher_config.hidden_size = 32;
  teacher_config.item_feature_size = 0;
  const Pair teacher(teacher_config, precision, 9, student.engine);
  const BatchData data = make_batch(config);

  OptimizerOptions options;
  options.weight_decay = 0.1f;
  options.max_grad_norm = 0.5f;
  Trainer host(student.host, options);
  api::ApiError error{};
  const api::ApiOptimizer api_options{
      api::ApiOptimizerKind::kAdamW, options.beta1, options.beta2, options.epsilon, options.weight_decay, 0,
      options.max_grad_norm};
  api::Trainer* trainer = made(library().create_trainer(student.model, &api_options, &error), error);

  TeacherSignal signal;
  signal.model = teacher.host.get();
  signal.layer_map = {{1, 2}, {3, 4}};
  signal.relation_heads = 2;
  const int64_t layer_map[] = {1, 2, 3, 4};
  api::ApiTeacher api_signal{};
  api_signal.model = teacher.model;
  api_signal.layer_map = layer_map;
  api_signal.num_pairs = 2;
  api_signal.relation_heads = 2;

  StepInputs inputs{};
  inputs.batch = data.view(config);
  inputs.labels = data.labels.data();
  inputs.learning_rate = 1e-3f;
  inputs.dropout_seed = dropout > 0 ? 3 : -1;
  inputs.sampled_negatives = sampled_negatives;
  api::ApiStep step{};
  step.batch = data.api_view(config);
  step.labels = data.labels.data();
  step.learning_rate = 1e-3f;
  step.dropout_seed = inputs.dropout_seed;
  step.ce = 1;
  step.temperature = step.fusion = step.gate = 1;
  step.sampled_negatives = sampled_negatives;
  if (has_teacher) {
    inputs.weights.kd = step.kd = 0.7f;
    inputs.weights.hidden = step.hidden = 0.5f;
    inputs.weights.attention = step.attention = 0.4f;
    inputs.weights.relation = step.relation = 0.3f;
    inputs.weights.temperature = step.temperature = 2;
    inputs.teachers = {signal};
    step.teacher = &api_signal;
  }
  StepInputs cut = inputs;
  cut.micro_batch_tokens = micro_batch_tokens;
  const std::vector<MicroBatch> parts = split_step(cut, config);
  std::vector<api::ApiStep> steps = steps_of(parts, step);
  const auto num_parts = static_cast<int64_t>(steps.size());

  Runtime runtime;
  const int64_t count = student.host->parameters().flat_count();
  std::vector<float> flat(static_cast<size_t>(count));
  const auto compare = [&](const StepResult& expected, const api::ApiStepResult& result) {
    CHECK(is_near(result.loss, expected.loss, tolerance));
    CHECK(is_near(result.ce, expected.ce, tolerance));
    CHECK(is_near(result.kd, expected.kd, tolerance));
    CHECK(is_near(result.hidden, expected.hidden, tolerance));
    CHECK(is_near(result.attention, expected.attention, 2 * tolerance));
    CHECK(is_near(result.relation, expected.relation, 2 * tolerance));
    CHECK(is_near(result.grad_norm, expected.grad_norm, tolerance));
    CHECK(result.num_labels == expected.num_labels);
  };
  const StepResult expected = host.compute_gradients(runtime.context, runtime.arena, inputs);
  api::ApiStepResult result{};
  done(library().compute_gradients(trainer, steps.data(), num_parts, &result, &error), error);
  compare(expected, result);
  done(library().get_gradients(student.model, flat.data(), &error), error);
  CHECK(distance(flat.data(), student.host->parameters().gradients(), count) < tolerance);
  // Each tensor on its own: a wrong small one hides in the whole. What is noise in theory is left out.
  for (const Parameter& parameter : student.host->parameters().list()) {
    const float* own = student.host->parameters().gradients() + parameter.offset;
    double square = 0;
    for (int64_t i = 0; i < parameter.count; ++i) square += double{own[i]} * own[i];
    if (std::sqrt(square) < 1e-3 * expected.grad_norm) continue;
    const bool is_close = distance(flat.data() + parameter.offset, own, parameter.count) < 4 * tolerance;
    if (!is_close) std::fprintf(stderr, "gradient of %s differs\n", parameter.name.c_str());
    CHECK(is_close);
  }
  for (int64_t index = 0; has_teacher && index < 2; ++index) {
    int64_t rows = 0, columns = 0;
    CHECK(library().projection_shape(trainer, index, &rows, &columns) == 0);
    std::vector<float> gradient(static_cast<size_t>(rows * columns));
    done(library().read_array(trainer, api::ApiArray::kProjectionGradient, index, gradient.data(), &error), error);
    CHECK(distance(gradient.data(), host.projections()[static_cast<size_t>(index)].gradient.get(), rows * columns) <
          tolerance);
  }

  // AdamW makes whole steps of the signs of noise, so the distance is to what moved.
  std::vector<float> before(student.host->parameters().values(), student.host->parameters().values() + count);
  for (int i = 0; i < 3; ++i) {
    const StepResult host_result = host.step(runtime.context, runtime.arena, inputs);
    done(library().step(trainer, steps.data(), num_parts, &result, &error), error);
    compare(host_result, result);
  }
  CHECK(library().get_step_count(trainer) == 3);
  done(library().get_parameters(student.model, flat.data(), &error), error);
  const float* after = const_cast<const Transformer&>(*student.host).parameters().values();
  double moved = 0, apart = 0;
  for (size_t i = 0; i < flat.size(); ++i) {
    moved += std::pow(double{after[i]} - before[i], 2);
    apart += std::pow(double{after[i]} - flat[i], 2);
  }
  CHECK(moved > 0);
  CHECK(std::sqrt(apart / moved) < (precision == api::ApiPrecision::kFloat32 ? 0.02 : 0.5));
  if (precision == api::ApiPrecision::kFloat32) {
    done(library().read_array(trainer, api::ApiArray::kFirst, 0, flat.data(), &error), error);
    CHECK(distance(flat.data(), host.first(), count) < 10 * tolerance);
    done(library().read_array(trainer, api::ApiArray::kSecond, 0, flat.data(), &error), error);
    CHECK(distance(flat.data(), host.second(), count) < 20 * tolerance);
  }

  // The same state gives the same bits.
  std::vector<float> again(flat.size());
  done(library().compute_gradients(trainer, steps.data(), num_parts, &result, &error), error);
  done(library().get_gradients(student.model, flat.data(), &error), error);
  done(library().compute_gradients(trainer, steps.data(), num_parts, &result, &error), error);
  done(library().get_gradients(student.model, again.data(), &error), error);
  CHECK(std::memcmp(flat.data(), again.data(), flat.size() * sizeof(float)) == 0);

  // So does computing the blocks again.
  for (api::ApiStep& part : steps) part.activation_checkpointing = 1;
  std::fill(again.begin(), again.end(), 0.0f);  // as what lies between the parameters
  done(library().compute_gradients(trainer, steps.data(), num_parts, &result, &error), error);
  done(library().get_gradients(student.model, again.data(), &error), error);
  CHECK(std::memcmp(flat.data(), again.data(), flat.size() * sizeof(float)) == 0);
  library().destroy_trainer(trainer);
}

constexpr auto kFloat32 = api::ApiPrecision::kFloat32;
constexpr auto kBFloat16 = api::ApiPrecision::kBFloat16;

}  // namespace

TEST("model: forward of a GPT-2 equals the CPU's") { check_forward(base_config(), kFloat32, 1e-5); }
TEST("model: forward of a BERT equals the CPU's") { check_forward(bert_config(), kFloat32, 1e-5); }
TEST("model: forward of a Llama equals the CPU's") { check_forward(llama_config(), kFloat32, 1e-5); }
TEST("model: forward of a sequence student equals the CPU's") { check_forward(sequence_config(), kFloat32, 1e-5); }
TEST("model: a feed-forward part by part gives what it gives at once, in less memory") {
  for (TransformerConfig config : {base_config(), bert_config(), llama_config()}) {
    config.max_position_embeddings = 300;
    BatchData data;
    data.offsets = {0, 290, 291, 384};
    const Philox random{11, 4};
    for (uint64_t i = 0; i < 384; ++i) {
      data.ids.push_back(static_cast<int32_t>(random.word(i) % static_cast<uint32_t>(config.vocab_size)));
      data.types.push_back(static_cast<int32_t>(i % 2));
    }
    const int64_t count = 384 * config.hidden_size, layer = config.num_hidden_layers;
    std::vector<float> results[2];
    [[maybe_unused]] size_t allocated[2] = {0, 0};
    for (const bool in_parts : {false, true}) {
      const Pair pair(config, kFloat32, 5);
      if (in_parts) library().set_mlp_bytes(pair.engine, 150 * 4 * 2 * config.intermediate_size);  // 128 tokens or 256
      std::vector<float>& hidden = results[in_parts];
      hidden.assign(static_cast<size_t>(count), NAN);
      void* const hidden_out[] = {hidden.data()};
      api::ApiForward request{};
      request.batch = data.api_view(config);
      request.hidden_states = &layer;
      request.num_hidden_states = 1;
      request.hidden_out = hidden_out;
      api::ApiError error{};
      done(library().forward(pair.model, &request, &error), error);
#ifdef LIMBECK_CUDA_EMULATED
      allocated[in_parts] = api::emulator::allocated_bytes();
#endif
    }
    CHECK(distance(results[1].data(), results[0].data(), count) < 1e-6);
#ifdef LIMBECK_CUDA_EMULATED
    CHECK(allocated[1] < allocated[0]);
#endif
  }
}

TEST("model: forward in bf16 is near the CPU's") {
  for (const TransformerConfig& config : {base_config(), bert_config(), llama_config(), sequence_config()}) {
    check_forward(config, kBFloat16, 4e-2);
  }
}

TEST("model: training a GPT-2 equals the CPU's") { check_training(base_config(), kFloat32, 2e-5, false, 0, 0); }
TEST("model: training a BERT equals the CPU's") { check_training(bert_config(), kFloat32, 2e-5, false, 0, 0); }
TEST("model: training a Llama equals the CPU's") { check_training(llama_config(), kFloat32, 2e-5, false, 0, 0); }
TEST("model: training a Qwen equals the CPU's, whose biases come before heads are turned or normed") {
  TransformerConfig config = llama_config();
  config.qkv_bias = true;
  check_training(config, kFloat32, 2e-5, false, 0, 0);
  config.qk_norm = false;
  check_training(config, kFloat32, 2e-5, false, 0, 0);
}
TEST("model: dropout has the CPU's masks") {
  check_training(base_config(), kFloat32, 2e-5, false, 0, 0.2f);
  check_training(bert_config(), kFloat32, 2e-5, false, 0, 0.2f);
}
TEST("model: distillation with every loss equals the CPU's") {
  check_training(base_config(), kFloat32, 2e-5, true, 0, 0);
  check_training(bert_config(), kFloat32, 2e-5, true, 0, 0.1f);
  check_training(llama_config(), kFloat32, 2e-5, true, 0, 0);
  check_training(sequence_config(), kFloat32, 2e-5, true, 0, 0);
}
TEST("model: sampled softmax equals the CPU's") {
  check_training(sequence_config(), kFloat32, 2e-5, false, 9, 0);
  check_training(sequence_config(), kFloat32, 2e-5, false, 60, 0.1f);
}
TEST("model: a step in micro batches equals the CPU's whole one") {
  // Sequences of 7, 1, 18 and 11 tokens, of which the second has no label: one by one, and the first two together.
  for (const int64_t tokens : {1, 12}) {
    check_training(base_config(), kFloat32, 2e-5, true, 0, 0.2f, tokens);
    check_training(bert_config(), kFloat32, 2e-5, true, 0, 0.2f, tokens);
    check_training(llama_config(), kFloat32, 2e-5, true, 0, 0.2f, tokens);
    check_training(sequence_config(), kFloat32, 2e-5, false, 9, 0.2f, tokens);
  }
}
TEST("model: of the gradients of a step nothing stays in the next, whatever their losses") {
  struct Losses {
    float ce, hidden;
    int64_t sampled_negatives, micro_batch_tokens;
  };
  for (const TransformerConfig& config : {base_config(), llama_config(), sequence_config()}) {
    const Pair student(config, kFloat32, 5);
    TransformerConfig teacher_config = config;
    teacher_config.item_feature_size = 0;
    const Pair teacher(teacher_config, kFloat32, 9, student.engine);
    BatchData data = make_batch(config);
    std::fill_n(data.labels.begin(), data.offsets[1], -100);  // the first part of two has no label
    Trainer host(student.host, {});
    api::ApiError error{};
    const api::ApiOptimizer options{api::ApiOptimizerKind::kAdamW, 0.9f, 0.999f, 1e-8f, 0, 0, 0};
    api::Trainer* trainer = made(library().create_trainer(student.model, &options, &error), error);
    TeacherSignal signal;
    signal.model = teacher.host.get();
    signal.layer_map = {{1, 2}};
    const int64_t layer_map[] = {1, 2};
    api::ApiTeacher api_signal{};
    api_signal.model = teacher.model;
    api_signal.layer_map = layer_map;
    api_signal.num_pairs = 1;
    Runtime runtime;
    const int64_t count = student.host->parameters().flat_count();
    std::vector<float> gradients(static_cast<size_t>(count));
    const Losses all[] = {{1, 0, 0, 0}, {1, 0, 0, 0}, {0, 1, 0, 0}, {1, 1, 0, 8},
                          {1, 0, 9, 0}, {1, 0, 0, 0}, {0, 1, 0, 0}};
    for (const Losses& losses : all) {
      StepInputs inputs{};
      inputs.batch = data.view(config);
      inputs.labels = data.labels.data();
      inputs.dropout_seed = 2;
      inputs.weights.ce = losses.ce;
      inputs.weights.hidden = losses.hidden;
      inputs.sampled_negatives = losses.sampled_negatives;
      api::ApiStep step{};
      step.dropout_seed = 2;
      step.ce = losses.ce;
      step.hidden = losses.hidden;
      step.temperature = step.fusion = step.gate = 1;
      step.sampled_negatives = losses.sampled_negatives;
      if (losses.hidden != 0) {
        inputs.teachers = {signal};
        step.teacher = &api_signal;
      }
      StepInputs cut = inputs;
      cut.micro_batch_tokens = losses.micro_batch_tokens;
      const std::vector<MicroBatch> parts = split_step(cut, config);
      CHECK((parts.size() > 1) == (losses.micro_batch_tokens > 0));
      const std::vector<api::ApiStep> steps = steps_of(parts, step);
      host.compute_gradients(runtime.context, runtime.arena, inputs);
      api::ApiStepResult result{};
      const auto num_parts = static_cast<int64_t>(steps.size());
      done(library().compute_gradients(trainer, steps.data(), num_parts, &result, &error), error);
      done(library().get_gradients(student.model, gradients.data(), &error), error);
      CHECK(distance(gradients.data(), student.host->parameters().gradients(), count) < 2e-5);
    }
    library().destroy_trainer(trainer);
  }
}

TEST("model: training in bf16 is near the CPU's") {
  check_training(base_config(), kBFloat16, 5e-2, true, 0, 0);
  check_training(bert_config(), kBFloat16, 5e-2, true, 0, 0);
  check_training(llama_config(), kBFloat16, 5e-2, true, 0, 0);
  check_training(sequence_config(), kBFloat16, 5e-2, false, 9, 0);
  check_training(llama_config(), kBFloat16, 5e-2, true, 0, 0.2f, 12);
}

TEST("model: a loss that is not finite leaves the parameters") {
  const TransformerConfig config = base_config();
  const Pair pair(config, kFloat32, 5);
  const BatchData data = make_batch(config);
  api::ApiError error{};
  const api::ApiOptimizer options{api::ApiOptimizerKind::kAdamW, 0.9f, 0.999f, 1e-8f, 0, 0, 0};
  api::Trainer* trainer = made(library().create_trainer(pair.model, &options, &error), error);
  const int64_t count = pair.host->parameters().flat_count();
  std::vector<float> values(pair.host->parameters().values(), pair.host->parameters().values() + count);
  values[static_cast<size_t>(pair.host->parameters().find("final_norm.weight").offset)] = INFINITY;
  done(library().set_parameters(pair.model, values.data(), &error), error);
  api::ApiStep step{};
  step.batch = data.api_view(config);
  step.labels = data.labels.data();
  step.step_tokens = step.step_labels = step.batch.num_tokens;
  step.learning_rate = 1e-3f;
  step.dropout_seed = -1;
  step.ce = step.temperature = step.fusion = step.gate = 1;
  api::ApiStepResult result{};
  CHECK(library().step(trainer, &step, 1, &result, &error) == -1);
  CHECK(std::string(error.code) == "ERR_NOT_FINITE");
  std::vector<float> after(static_cast<size_t>(count));
  done(library().get_parameters(pair.model, after.data(), &error), error);
  CHECK(std::memcmp(values.data(), after.data(), values.size() * sizeof(float)) == 0);
  CHECK(library().get_step_count(trainer) == 0);
  library().destroy_trainer(trainer);
}

namespace {

/// Streams that do their work as late as they may: where there is a GPU, it decides.
struct LazyMachine {
#ifdef LIMBECK_CUDA_EMULATED
  explicit LazyMachine(bool is_lazy) { api::emulator::machine().is_lazy = is_lazy; }
  ~LazyMachine() { api::emulator::machine().reset(); }
#else
  explicit LazyMachine(bool) {}
  ~LazyMachine() {}
#endif
};

struct StepKind {
  bool has_teacher_model = false, has_teacher_arrays = false;
  bool teaches_itself = false, compares_maps = false;  // with a teacher model
  int64_t sampled_negatives = 0, micro_batch_tokens = 0;
  float dropout = 0;
};

/// What a trainer has become.
struct Trained {
  std::vector<float> parameters, first, second;
  std::vector<api::ApiStepResult> results;
  bool operator==(const Trained& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(parameters, other.parameters) && same(first, other.first) && same(second, other.second) &&
           same(results, other.results);
  }
};

/// A student that takes steps, up to `in_flight` at once.
class SteppingStudent {
 public:
  SteppingStudent(TransformerConfig config, api::ApiPrecision precision, const StepKind& kind)
      : kind_(kind), config_(with_dropout(config, kind.dropout)), student_(config_, precision, 5) {
    if (kind.has_teacher_model) teacher_ = std::make_unique<Pair>(config, precision, 9, student_.engine);
    api::ApiError error{};
    const api::ApiOptimizer options{api::ApiOptimizerKind::kAdamW, 0.9f, 0.99f, 1e-8f, 0.1f, 0, 0.5f};
    trainer_ = made(library().create_trainer(student_.model, &options, &error), error);
  }
  ~SteppingStudent() { library().destroy_trainer(trainer_); }

  /// Step `index`, with ids of its own; a long one has more tokens. The arrays are gone when it returns.
  void begin(int index, bool is_long = false, float weight = 1, float learning_rate = 1e-3f) {
    BatchData data = make_batch(config_);
    if (is_long) {
      const BatchData more = data;
      const auto before = static_cast<int32_t>(data.ids.size());
      data.ids.insert(data.ids.end(), more.ids.begin(), more.ids.end());
      data.types.insert(data.types.end(), more.types.begin(), more.types.end());
      data.labels.insert(data.labels.end(), more.labels.begin(), more.labels.end());
      for (size_t s = 1; s < more.offsets.size(); ++s) data.offsets.push_back(before + more.offsets[s]);
    }
    for (size_t i = 0; i < data.ids.size(); ++i) {
      data.ids[i] = static_cast<int32_t>((data.ids[i] + 7 * index) % config_.vocab_size);
      if (data.labels[i] >= 0) data.labels[i] = static_cast<int32_t>((data.labels[i] + 5 * index) % config_.vocab_size);
    }
    StepInputs inputs{};
    inputs.batch = data.view(config_);
    inputs.labels = data.labels.data();
    inputs.micro_batch_tokens = kind_.micro_batch_tokens;
    std::vector<float> hidden, values, log_sum_exp;
    std::vector<int32_t> indices;
    const auto N = static_cast<int64_t>(data.ids.size());
    TeacherSignal signal;
    if (kind_.has_teacher_arrays) {
      hidden = random_values(N * 24, 900 + static_cast<uint64_t>(index), 1);
      values = random_values(N * 3, 800, 1);
      log_sum_exp.assign(static_cast<size_t>(N), 6);
      for (int64_t i = 0; i < 3 * N; ++i) indices.push_back(static_cast<int32_t>(7 * (i % 3) + index % 5));
      signal.layer_map = {{2, 2}};
      signal.hidden = {hidden.data()};
      signal.teacher_hidden_size = 24;
      signal.top_k_indices = indices.data();
      signal.top_k_values = values.data();
      signal.log_sum_exp = log_sum_exp.data();
      signal.top_k = 3;
      inputs.teachers = {signal};
    }
    const std::vector<MicroBatch> parts = split_step(inputs, config_);
    const int64_t layer_map[] = {2, 2};
    std::vector<api::ApiStep> steps;
    std::vector<StepInputs> owned;
    std::vector<api::ApiTeacher> teachers(parts.size());
    std::vector<std::vector<const float*>> states(parts.size());
    for (const MicroBatch& part : parts) {
      const size_t i = steps.size();
      owned.push_back(part.inputs());
      const StepInputs& own = owned.back();
      api::ApiStep step{};
      step.batch = {own.batch.input_ids,     own.batch.sequence_offsets, own.batch.token_type_ids, own.batch.num_tokens,
                    own.batch.num_sequences, own.batch.tokens_before,    own.batch.squares_before};
      step.labels = own.labels;
      step.step_tokens = own.step_tokens;
      step.step_labels = own.step_labels;
      step.learning_rate = learning_rate * static_cast<float>(1 + index);
      step.dropout_seed = kind_.dropout > 0 || kind_.sampled_negatives > 0 ? index : -1;
      step.sampled_negatives = kind_.sampled_negatives;
      step.ce = weight;
      step.temperature = step.fusion = step.gate = 1;
      api::ApiTeacher& teacher = teachers[i];
      if (kind_.has_teacher_model || kind_.has_teacher_arrays) {
        step.kd = 0.5f;
        step.hidden = 0.3f;
        step.teacher = &teacher;
        teacher.layer_map = layer_map;
        teacher.num_pairs = 1;
      }
      if (kind_.has_teacher_model) teacher.model = kind_.teaches_itself ? student_.model : teacher_->model;
      if (kind_.compares_maps) {
        step.attention = 0.4f;
        step.relation = 0.2f;
        teacher.relation_heads = config_.num_key_value_heads;
      }
      if (kind_.has_teacher_arrays) {
        const TeacherSignal& part_signal = own.teachers[0];
        states[i] = {part_signal.hidden[0]};
        teacher.hidden = states[i].data();
        teacher.teacher_hidden_size = 24;
        teacher.top_k_indices = part_signal.top_k_indices;
        teacher.top_k_values = part_signal.top_k_values;
        teacher.log_sum_exp = part_signal.log_sum_exp;
        teacher.top_k = 3;
      }
      steps.push_back(step);
    }
    api::ApiError error{};
    done(library().begin_step(trainer_, steps.data(), static_cast<int64_t>(steps.size()), &error), error);
  }
  void finish() {
    api::ApiError error{};
    api::ApiStepResult result{};
    done(library().finish_step(trainer_, &result, &error), error);
    results_.push_back(result);
  }
  /// The code of its error.
  std::string fail_to_finish() {
    api::ApiError error{};
    api::ApiStepResult result{};
    CHECK(library().finish_step(trainer_, &result, &error) == -1);
    return error.code;
  }
  Trained trained() {
    Trained out;
    const auto count = static_cast<size_t>(student_.host->parameters().flat_count());
    out.parameters.assign(count, 0.0f);
    out.first = out.second = out.parameters;
    api::ApiError error{};
    done(library().get_parameters(student_.model, out.parameters.data(), &error), error);
    done(library().read_array(trainer_, api::ApiArray::kFirst, 0, out.first.data(), &error), error);
    done(library().read_array(trainer_, api::ApiArray::kSecond, 0, out.second.data(), &error), error);
    out.results = results_;
    return out;
  }
  int64_t step_count() const { return library().get_step_count(trainer_); }
  api::Model* model() const { return student_.model; }

 private:
  static TransformerConfig with_dropout(TransformerConfig config, float dropout) {
    config.embedding_dropout = config.attention_dropout = config.hidden_dropout = dropout;
    return config;
  }

  const StepKind kind_;
  const TransformerConfig config_;
  const Pair student_;
  std::unique_ptr<Pair> teacher_;
  api::Trainer* trainer_;
  std::vector<api::ApiStepResult> results_;
};

enum class Flight {
  kOneAtATime,
  kTwo,
  kTwoSideFirst
};  // kTwoSideFirst: a lazy machine does the side lane's work first

/// Seven steps of two lengths: from the third of one length on, what can be runs as a graph.
Trained take_steps(const TransformerConfig& config, api::ApiPrecision precision, const StepKind& kind, Flight flight) {
  const LazyMachine machine(flight != Flight::kOneAtATime);
  SteppingStudent student(config, precision, kind);
  for (int i = 0; i < 7; ++i) {
    student.begin(i, i == 3);
    if (flight == Flight::kTwoSideFirst && i % 2 == 1) CHECK(cudaDeviceSynchronize() == cudaSuccess);
    if (i > 0 || flight == Flight::kOneAtATime) student.finish();
  }
  if (flight != Flight::kOneAtATime) student.finish();
  CHECK(student.step_count() == 7);
  return student.trained();
}

void check_two_in_flight(const TransformerConfig& config, api::ApiPrecision precision, const StepKind& kind) {
  const Trained one_by_one = take_steps(config, precision, kind, Flight::kOneAtATime);
  CHECK(one_by_one.results.size() == 7 && one_by_one.results[6].loss > 0);
  CHECK(take_steps(config, precision, kind, Flight::kTwo) == one_by_one);
  if (kind.has_teacher_model) CHECK(take_steps(config, precision, kind, Flight::kTwoSideFirst) == one_by_one);
}

}  // namespace

TEST("model: two steps in flight give the bits of one at a time") {
  StepKind plain, sampled, sampled_parts, taught, parts, taught_parts, taught_by_itself;
  sampled.sampled_negatives = sampled_parts.sampled_negatives = 9;
  sampled_parts.micro_batch_tokens = 12;
  taught.has_teacher_model = true;
  taught.dropout = 0.2f;
  parts.has_teacher_arrays = true;
  parts.micro_batch_tokens = 20;
  taught_parts.has_teacher_model = taught_parts.compares_maps = true;
  taught_parts.micro_batch_tokens = 20;
  taught_by_itself = taught_parts;
  taught_by_itself.teaches_itself = true;
  TransformerConfig small = base_config(), items = sequence_config(), few_items = sequence_config();
  small.num_hidden_layers = items.num_hidden_layers = few_items.num_hidden_layers = 2;
  few_items.item_feature_size = 0;  // gradients are touched in few rows
  check_two_in_flight(small, kBFloat16, plain);
  check_two_in_flight(small, kFloat32, taught);
  check_two_in_flight(small, kFloat32, parts);
  check_two_in_flight(small, kFloat32, taught_parts);
  check_two_in_flight(small, kBFloat16, taught_by_itself);
  check_two_in_flight(items, kFloat32, sampled_parts);
  check_two_in_flight(few_items, kFloat32, sampled);
}

#ifdef LIMBECK_CUDA_EMULATED
TEST("model: a teacher runs beside its student where there is memory, and gives the same where there is not") {
  const LazyMachine machine(true);
  StepKind kind;
  kind.has_teacher_model = kind.compares_maps = true;
  kind.micro_batch_tokens = 20;
  TransformerConfig config = base_config();
  config.num_hidden_layers = 2;
  Trained trained[2];
  for (const bool is_beside : {false, true}) {
    SteppingStudent student(config, kFloat32, kind);
    api::emulator::Machine& gpu = api::emulator::machine();
    const size_t before = api::emulator::allocated_bytes(), room = size_t{1} << 20;  // the side lane needs more
    gpu.used_by_others_bytes = is_beside ? 0 : gpu.total_bytes - before - room;
    for (int i = 0; i < 3; ++i) {
      student.begin(i, i == 1);
      student.finish();
    }
    gpu.used_by_others_bytes = 0;
    CHECK((api::emulator::allocated_bytes() - before > room) == is_beside);
    trained[is_beside] = student.trained();
  }
  CHECK(trained[0] == trained[1]);
}
#endif

TEST("model: after a step that was not finite, one that was begun changes nothing") {
  const LazyMachine machine(true);
  TransformerConfig config = base_config();
  config.num_hidden_layers = 2;
  SteppingStudent student(config, kFloat32, {}), good(config, kFloat32, {});
  student.begin(0);
  student.finish();
  good.begin(0);
  good.finish();
  student.begin(20, false, INFINITY);
  student.begin(21);
  CHECK(student.fail_to_finish() == "ERR_NOT_FINITE");
  CHECK(student.step_count() == 1);
  CHECK(student.trained() == good.trained());
  student.begin(30);  // follows the last good one
  CHECK(student.fail_to_finish() == "ERR_NOT_FINITE");
  student.finish();
  good.begin(30);
  good.finish();
  CHECK(student.step_count() == 2);
  CHECK(student.trained() == good.trained());
  // Again as graphs, which another weight would end: a step that goes too far is finite itself.
  for (int i = 31; i < 34; ++i) {
    student.begin(i);
    student.finish();
    good.begin(i);
    good.finish();
  }
  good.begin(40, false, 1, 1e30f);
  good.finish();
  student.begin(40, false, 1, 1e30f);
  student.begin(41);
  student.finish();
  student.begin(42);
  CHECK(student.fail_to_finish() == "ERR_NOT_FINITE");
  CHECK(student.fail_to_finish() == "ERR_NOT_FINITE");
  CHECK(student.step_count() == 6);
  CHECK(student.trained() == good.trained());
}

TEST("model: a step in flight is seen by what comes after, and must be finished before the next but one") {
  const LazyMachine machine(true);
  SteppingStudent student(base_config(), kFloat32, {}), other(base_config(), kFloat32, {});
  CHECK(student.fail_to_finish() == "ERR_INVALID_ARGUMENT");
  other.begin(0);
  other.finish();
  other.begin(1);
  other.finish();
  student.begin(0);
  student.begin(1);
  CHECK_ERROR("ERR_CUDA", student.begin(2));
  CHECK(student.step_count() == 0);
  CHECK(student.trained().parameters == other.trained().parameters);
  student.finish();
  student.finish();
  CHECK(student.trained() == other.trained());
  student.begin(2);  // and no one finishes it
}

TEST("model: interpolation on the GPU is θ + alpha·(source − θ)") {
  const TransformerConfig config = base_config();
  const Pair first(config, kFloat32, 5);
  const Pair second(config, kFloat32, 6, first.engine);
  api::ApiError error{};
  done(library().interpolate(first.model, second.model, 0.25f, &error), error);
  const int64_t count = first.host->parameters().flat_count();
  std::vector<float> out(static_cast<size_t>(count)), expected(out.size());
  done(library().get_parameters(first.model, out.data(), &error), error);
  const float* a = const_cast<const Transformer&>(*first.host).parameters().values();
  const float* b = const_cast<const Transformer&>(*second.host).parameters().values();
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = a[i] + 0.25f * (b[i] - a[i]);
  CHECK(distance(out.data(), expected.data(), count) < 1e-6);
}

namespace {

/// Of which one kernel computes the last hidden state, in bf16.
TransformerConfig small_sequence_config(int64_t width, int64_t heads) {
  TransformerConfig config = sequence_config();
  config.hidden_size = width;
  config.num_attention_heads = config.num_key_value_heads = heads;
  config.head_dim = width / heads;
  config.num_hidden_layers = 2;
  config.intermediate_size = 4 * width;
  config.max_position_embeddings = 64;
  return config;
}

void check_requests(TransformerConfig config, int32_t num_items = 300, size_t num_histories = 6) {
  for (const auto precision : {kFloat32, kBFloat16}) {
    config.vocab_size = num_items;
    const Pair pair(config, precision, 5);
    api::ApiError error{};
    api::Recommender* recommender = made(library().create_recommender(pair.model, &error), error);
    Runtime runtime;
    std::vector<std::vector<int32_t>> histories = {{5}, {1, 2, 3, 200}, std::vector<int32_t>(20, 7)};
    for (const int64_t length : {int64_t{17}, int64_t{7}, config.max_position_embeddings}) {
      histories.emplace_back();
      for (int64_t i = 0; i < length; ++i)
        histories.back().push_back(static_cast<int32_t>((i * i * 3 + 299) % num_items));
    }
    histories.erase(histories.begin(), histories.end() - static_cast<int64_t>(num_histories));
    for (const std::vector<int32_t>& history : histories) {
      const std::vector<int32_t> offsets = {0, static_cast<int32_t>(history.size())};
      const int32_t last = offsets[1] - 1;
      ForwardInputs inputs;
      inputs.batch = {history.data(), offsets.data(), nullptr, offsets[1], 1};
      inputs.logits = LogitsForm::kDense;
      inputs.logit_rows = &last;
      inputs.num_logit_rows = 1;
      const ForwardOutputs expected = run_forward(runtime.context, runtime.arena, *pair.host, inputs);
      for (const int64_t k : {1, 10, 40, 100}) {
        std::vector<int32_t> items(static_cast<size_t>(k), -5);
        std::vector<float> scores(static_cast<size_t>(k), NAN);
        int64_t count = -1;
        const api::ApiRecommend request{history.data(), offsets[1],    history.data(), offsets[1], k,
                                        items.data(),   scores.data(), &count};
        done(library().recommend(recommender, &request, &error), error);
        CHECK(count == k);
        const float tolerance = precision == kFloat32 ? 1e-4f : 0.1f;
        for (size_t i = 0; i < items.size(); ++i) {
          CHECK(items[i] >= 0 && items[i] < num_items);
          CHECK(std::find(history.begin(), history.end(), items[i]) == history.end());
          CHECK(std::find(items.begin(), items.begin() + static_cast<int64_t>(i), items[i]) ==
                items.begin() + static_cast<int64_t>(i));
          CHECK(std::fabs(scores[i] - expected.logits.data()[items[i]]) < tolerance);
          if (i > 0) CHECK(scores[i] <= scores[i - 1]);
        }
        // Nothing better was passed over.
        for (int32_t item = 0; item < num_items; ++item) {
          const bool is_eligible = std::find(history.begin(), history.end(), item) == history.end() &&
                                   std::find(items.begin(), items.end(), item) == items.end();
          CHECK(!is_eligible || expected.logits.data()[item] <= scores.back() + tolerance);
        }
      }
    }
    std::vector<int32_t> items(2000);
    std::vector<float> scores(2000);
    int64_t count = 0;
    const api::ApiRecommend request{
        items.data(), config.max_position_embeddings + 1, nullptr, 0, 10, items.data(), scores.data(), &count};
    CHECK(library().recommend(recommender, &request, &error) == -1);
    CHECK(std::string(error.code) == "ERR_INVALID_ARGUMENT");
    library().destroy_recommender(recommender);
  }
}

/// Full ranking after histories, and after the states that these lead to, beside the scores that the processor gives.
void check_ranking(TransformerConfig config, api::ApiPrecision precision, int64_t num_cases, int64_t most_items) {
  config.vocab_size = 150;
  constexpr int64_t kBest = 20;
  const Pair pair(config, precision, 5);
  api::ApiError error{};
  api::Recommender* recommender = made(library().create_recommender(pair.model, &error), error);
  BatchData data;
  data.offsets = {0};
  std::vector<int32_t> targets, excluded, excluded_offsets = {0}, last;
  for (int32_t s = 0; s < num_cases; ++s) {
    for (int64_t i = 0; i < 1 + s * 37 % most_items; ++i) {
      data.ids.push_back(static_cast<int32_t>((i * i * 3 + s * 11) % 150));
    }
    data.offsets.push_back(static_cast<int32_t>(data.ids.size()));
    last.push_back(data.offsets.back() - 1);
    targets.push_back(s * 13 % 150);
    for (int32_t i = 0; i < s % 4 * 9; ++i) {
      if ((s + i * 4) % 150 != targets.back()) excluded.push_back((s + i * 4) % 150);
    }
    excluded_offsets.push_back(static_cast<int32_t>(excluded.size()));
  }
  Runtime runtime;
  ForwardInputs inputs;
  inputs.batch = {data.ids.data(), data.offsets.data(), nullptr, data.offsets.back(), num_cases};
  inputs.hidden_states = {config.num_hidden_layers};
  inputs.pooling = Pooling::kLast;
  inputs.logits = LogitsForm::kDense;
  inputs.logit_rows = last.data();
  inputs.num_logit_rows = num_cases;
  const ForwardOutputs expected = run_forward(runtime.context, runtime.arena, *pair.host, inputs);
  const float tolerance = precision == kFloat32 ? 1e-4f : 0.1f;
  const auto cases = static_cast<size_t>(num_cases);
  for (const bool has_states : {false, true}) {
    const float* states = has_states ? expected.hidden_states[0].data() : nullptr;
    std::vector<int32_t> ranks(cases, -5), items(cases * kBest, -5);
    std::vector<float> scores(cases * kBest, NAN);
    const api::ApiRank request{
        data.api_view(config), states,       targets.data(), excluded.data(), excluded_offsets.data(), kBest,
        ranks.data(),          items.data(), scores.data()};
    done(library().rank(recommender, &request, &error), error);
    for (int64_t s = 0; s < num_cases; ++s) {
      const float* logits = expected.logits.data() + s * 150;
      const int32_t *left_out = excluded.data() + excluded_offsets[s], *end = excluded.data() + excluded_offsets[s + 1];
      const float target = logits[targets[static_cast<size_t>(s)]];
      int32_t least = 1, most = 0;  // with what is too close to tell
      for (int32_t item = 0; item < 150; ++item) {
        if (std::find(left_out, end, item) != end) continue;
        least += logits[item] > target + tolerance ? 1 : 0;
        most += logits[item] >= target - tolerance ? 1 : 0;
      }
      CHECK(ranks[static_cast<size_t>(s)] >= least && ranks[static_cast<size_t>(s)] <= most);
      const int32_t* best = items.data() + s * kBest;
      for (int64_t i = 0; i < kBest; ++i) {
        const float score = scores[static_cast<size_t>(s * kBest + i)];
        CHECK(best[i] >= 0 && best[i] < 150 && std::find(left_out, end, best[i]) == end);
        CHECK(std::find(best, best + i, best[i]) == best + i && std::fabs(score - logits[best[i]]) < tolerance);
      }
      for (int32_t item = 0; item < 150; ++item) {
        const bool is_passed_over =
            std::find(left_out, end, item) == end && std::find(best, best + kBest, item) == best + kBest;
        CHECK(!is_passed_over || logits[item] <= scores[static_cast<size_t>(s * kBest + kBest - 1)] + tolerance);
      }
    }
  }
  library().destroy_recommender(recommender);
}

/// A request with arrays of its own, poisoned.
struct ForwardCase {
  ForwardCase(const TransformerConfig& config, const BatchData& data, Pooling pooling, int64_t num_states,
              api::ApiPrecision hidden_type)
      : values(static_cast<size_t>(num_states) * state_count(config, data, pooling) *
                   (hidden_type == api::ApiPrecision::kFloat32 ? sizeof(float) : sizeof(uint16_t)),
               static_cast<char>(0xFF)),
        layers(static_cast<size_t>(num_states)),
        indices(data.ids.size() * kBest, -7),
        maps(static_cast<size_t>(map_count(config, data)), NAN),
        best(indices.size(), NAN),
        log_sum_exp(data.ids.size(), NAN) {
    for (size_t i = 0; i < layers.size(); ++i) {
      layers[i] = static_cast<int64_t>(i) % (config.num_hidden_layers + 1);
      hidden.push_back(values.data() + i * (values.size() / layers.size()));
    }
    request.batch = data.api_view(config);
    request.hidden_states = layers.data();
    request.num_hidden_states = num_states;
    request.pooling = static_cast<api::ApiPooling>(pooling);
    request.hidden_type = hidden_type;
    request.hidden_out = hidden.data();
    request.attentions = &kMapLayer;
    request.num_attentions = 1;
    request.attentions_out = maps_out;
    request.top_k = kBest;
    request.top_k_indices = indices.data();
    request.top_k_values = best.data();
    request.log_sum_exp = log_sum_exp.data();
    request.labels = data.labels.data();
    request.loss_sum = &loss_sum;
  }
  ForwardCase(const ForwardCase&) = delete;
  static size_t state_count(const TransformerConfig& config, const BatchData& data, Pooling pooling) {
    const size_t rows = pooling == Pooling::kNone ? data.ids.size() : data.offsets.size() - 1;
    return rows * static_cast<size_t>(config.hidden_size);
  }
  static int64_t map_count(const TransformerConfig& config, const BatchData& data) {
    int64_t count = 0;
    for (size_t s = 0; s + 1 < data.offsets.size(); ++s) {
      const int64_t length = data.offsets[s + 1] - data.offsets[s];
      count += config.num_attention_heads * length * length;
    }
    return count;
  }
  bool operator==(const ForwardCase& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(values, other.values) && same(maps, other.maps) && same(indices, other.indices) &&
           same(best, other.best) && same(log_sum_exp, other.log_sum_exp) && loss_sum == other.loss_sum;
  }

  static constexpr int64_t kBest = 4, kMapLayer = 2;
  std::vector<char> values;  // hidden states, one after the other
  std::vector<int64_t> layers;
  std::vector<void*> hidden;
  std::vector<int32_t> indices;
  std::vector<float> maps, best, log_sum_exp;
  float* maps_out[1] = {maps.data()};
  double loss_sum = NAN;
  api::ApiForward request{};
};

/// A batch of the lengths of make_batch(), or of others, with other ids.
BatchData rotated(const BatchData& data, size_t by, const TransformerConfig& config) {
  BatchData other = data;
  for (size_t i = 0; i < data.ids.size(); ++i) {
    other.ids[i] = static_cast<int32_t>((data.ids[i] + static_cast<int32_t>(7 * by)) % config.vocab_size);
  }
  if (by % 2 == 1) {  // 18, 11, 8
    other.offsets = {0, 18, 29, 37};
    for (int32_t& label : other.labels) label = std::max(label, 0);
  }
  return other;
}

/// Passes begun before those before are finished, `depth` at once, give what they give one by one.
void check_passes_in_flight(const TransformerConfig& config, api::ApiPrecision precision, Pooling pooling,
                            int64_t num_states, api::ApiPrecision hidden_type, size_t depth) {
  const Pair pair(config, precision, 5);
  const BatchData data = make_batch(config);
  constexpr size_t kPasses = 5;
  std::vector<BatchData> batches;
  for (size_t i = 0; i < kPasses; ++i) batches.push_back(rotated(data, i, config));
  std::vector<std::unique_ptr<ForwardCase>> expected, actual;
  api::ApiError error{};
  for (const BatchData& batch : batches) {
    // An odd number of states makes the sizes of passes differ.
    const int64_t states = num_states + static_cast<int64_t>(expected.size() % 2);
    expected.push_back(std::make_unique<ForwardCase>(config, batch, pooling, states, hidden_type));
    actual.push_back(std::make_unique<ForwardCase>(config, batch, pooling, states, hidden_type));
    done(library().forward(pair.model, &expected.back()->request, &error), error);
    CHECK(std::isfinite(expected.back()->loss_sum) && expected.back()->loss_sum > 0);
    for (const float value : expected.back()->log_sum_exp) CHECK(std::isfinite(value));
  }
  CHECK(!(*expected[0] == *expected[2]));
  std::vector<api::Pass*> passes;
  const auto finish = [&](size_t i) {
    done(library().finish_forward(passes[i], &error), error);
    library().destroy_forward(passes[i]);
    CHECK(*actual[i] == *expected[i]);
  };
  for (size_t i = 0; i < kPasses; ++i) {
    BatchData inputs = batches[i];
    actual[i]->request.batch = inputs.api_view(config);
    actual[i]->request.labels = inputs.labels.data();
    passes.push_back(made(library().begin_forward(pair.model, &actual[i]->request, &error), error));
    // The inputs are the caller's again.
    std::fill(inputs.ids.begin(), inputs.ids.end(), 0);
    std::fill(inputs.labels.begin(), inputs.labels.end(), 0);
    if (i + 1 >= depth) finish(i + 1 - depth);
  }
  for (size_t i = kPasses - (depth - 1); i < kPasses; ++i) finish(i);
}

}  // namespace

TEST("model: passes in flight give what they give one by one") {
  const LazyMachine machine(true);
  for (const api::ApiPrecision precision : {kFloat32, kBFloat16}) {
    check_passes_in_flight(base_config(), precision, Pooling::kNone, 3, kFloat32, 2);
    check_passes_in_flight(bert_config(), precision, Pooling::kMean, 2, kFloat32, 3);
    check_passes_in_flight(llama_config(), precision, Pooling::kNone, 2, kBFloat16, 5);
  }
}
TEST("model: passes beside each other see the steps that were begun before them, and no later ones") {
  const LazyMachine machine(true);
  TransformerConfig config = base_config();
  config.num_hidden_layers = 2;
  const BatchData data = make_batch(config);
  SteppingStudent student(config, kBFloat16, {}), other(config, kBFloat16, {});
  std::vector<std::unique_ptr<ForwardCase>> expected, actual;
  for (int i = 0; i < 4; ++i) {
    expected.push_back(std::make_unique<ForwardCase>(config, data, Pooling::kNone, 3, kFloat32));
    actual.push_back(std::make_unique<ForwardCase>(config, data, Pooling::kNone, 3, kFloat32));
  }
  api::ApiError error{};
  const auto step_and_forward = [&](int step, size_t pass) {
    other.begin(step);
    other.finish();
    done(library().forward(other.model(), &expected[pass]->request, &error), error);
  };
  step_and_forward(0, 0);
  done(library().forward(other.model(), &expected[1]->request, &error), error);
  step_and_forward(1, 2);
  step_and_forward(2, 3);
  CHECK(*expected[0] == *expected[1] && !(*expected[1] == *expected[2]) && !(*expected[2] == *expected[3]));

  api::Pass* passes[4];
  const auto begin = [&](size_t i) {
    passes[i] = made(library().begin_forward(student.model(), &actual[i]->request, &error), error);
  };
  const auto finish = [&](size_t i) {
    done(library().finish_forward(passes[i], &error), error);
    library().destroy_forward(passes[i]);
    CHECK(*actual[i] == *expected[i]);
  };
  for (size_t i = 0; i < 4; ++i) {  // so that there are slots for results: to allocate one is to wait
    begin(i);
    done(library().finish_forward(passes[i], &error), error);
    library().destroy_forward(passes[i]);
  }
  student.begin(0);
  begin(0);
  begin(1);
  student.begin(1);
  student.finish();
  student.finish();
  finish(1);
  begin(2);
  finish(2);
  student.begin(2);
  begin(3);
  finish(3);
  finish(0);
  student.finish();
  CHECK(student.trained().parameters == other.trained().parameters);
}
#ifdef LIMBECK_CUDA_EMULATED
TEST("model: a pass beside another one has memory of its own where there is some, and gives it back where it lacks") {
  const LazyMachine machine(true);
  const TransformerConfig config = base_config();
  const Pair pair(config, kFloat32, 5);
  const BatchData data = make_batch(config);
  BatchData long_data = data;
  for (size_t s = 1; s < data.offsets.size(); ++s) {
    long_data.offsets.push_back(static_cast<int32_t>(data.ids.size()) + data.offsets[s]);
  }
  for (auto* list : {&long_data.ids, &long_data.types, &long_data.labels}) {
    const std::vector<int32_t> copy = *list;
    list->insert(list->end(), copy.begin(), copy.end());
  }
  api::ApiError error{};
  const auto forward = [&](ForwardCase& pass) { done(library().forward(pair.model, &pass.request, &error), error); };
  const auto all_free_but = [](size_t size_bytes) {
    api::emulator::Machine& m = api::emulator::machine();
    m.used_by_others_bytes = m.total_bytes - api::emulator::allocated_bytes() - size_bytes;
  };
  ForwardCase expected(config, data, Pooling::kNone, 3, kFloat32);
  for (int i = 0; i < 4; ++i) forward(expected);  // in all slots
  const auto check_two = [&] {
    ForwardCase first(config, data, Pooling::kNone, 3, kFloat32), second(config, data, Pooling::kNone, 3, kFloat32);
    api::Pass* one = made(library().begin_forward(pair.model, &first.request, &error), error);
    api::Pass* two = made(library().begin_forward(pair.model, &second.request, &error), error);
    done(library().finish_forward(two, &error), error);
    done(library().finish_forward(one, &error), error);
    library().destroy_forward(one);
    library().destroy_forward(two);
    CHECK(first == expected && second == expected);
  };
  const size_t alone = api::emulator::allocated_bytes();
  all_free_but(0);
  check_two();
  CHECK(api::emulator::allocated_bytes() == alone);
  all_free_but(size_t{1} << 30);
  check_two();
  const size_t together = api::emulator::allocated_bytes();
  CHECK(together > alone);
  all_free_but(size_t{64} << 10);
  ForwardCase longer(config, long_data, Pooling::kNone, 1, kFloat32);
  forward(longer);
  CHECK(std::isfinite(longer.loss_sum) && api::emulator::allocated_bytes() <= together + (size_t{64} << 10));
  check_two();
}
#endif
TEST("model: a pass in pieces, more of them than there are slots") {
  const LazyMachine machine(true);
  // Tokens of a piece follow from its results: 1.9 MB a token in fp32.
  check_passes_in_flight(base_config(), kFloat32, Pooling::kNone, 20'000, kFloat32, 2);
  check_passes_in_flight(base_config(), kBFloat16, Pooling::kNone, 60'000, kBFloat16, 3);
}
TEST("model: hidden states as bfloat16 are those in float, rounded") {
  for (const api::ApiPrecision precision : {kFloat32, kBFloat16}) {
    const TransformerConfig config = base_config();
    const Pair pair(config, precision, 5);
    const BatchData data = make_batch(config);
    ForwardCase floats(config, data, Pooling::kNone, 4, kFloat32), halves(config, data, Pooling::kNone, 4, kBFloat16);
    api::ApiError error{};
    done(library().forward(pair.model, &floats.request, &error), error);
    done(library().forward(pair.model, &halves.request, &error), error);
    const size_t count = floats.values.size() / sizeof(float);
    CHECK(count * sizeof(uint16_t) == halves.values.size());
    const auto* wide = reinterpret_cast<const float*>(floats.values.data());
    std::vector<uint16_t> rounded(count);
    to_bfloat16(wide, rounded.data(), static_cast<int64_t>(count));
    CHECK(std::memcmp(rounded.data(), halves.values.data(), halves.values.size()) == 0);
  }
}
TEST("model: a pass that is given up leaves its arrays and the next pass alone") {
  const LazyMachine machine(true);
  const TransformerConfig config = base_config();
  const Pair pair(config, kBFloat16, 5);
  const BatchData data = make_batch(config);
  ForwardCase expected(config, data, Pooling::kNone, 3, kFloat32), actual(config, data, Pooling::kNone, 3, kFloat32),
      untouched(config, data, Pooling::kNone, 3, kFloat32);
  api::ApiError error{};
  done(library().forward(pair.model, &expected.request, &error), error);
  for (int i = 0; i < 6; ++i) {
    ForwardCase given_up(config, data, Pooling::kNone, 3, kFloat32);
    library().destroy_forward(made(library().begin_forward(pair.model, &given_up.request, &error), error));
    CHECK(given_up.values == untouched.values);
    CHECK(std::isnan(given_up.loss_sum));
  }
  api::Pass* pass = made(library().begin_forward(pair.model, &actual.request, &error), error);
  done(library().finish_forward(pass, &error), error);
  library().destroy_forward(pass);
  CHECK(actual == expected);
}
TEST("model: a request is the forward pass and the best items") {
  check_requests(sequence_config());
  TransformerConfig config = small_sequence_config(64, 2);
  check_requests(config);
  config.norm_placement = NormPlacement::kBefore;
  check_requests(config);
  config = small_sequence_config(32, 1);
  config.hidden_act = Activation::kGeluErf;
  config.item_feature_size = 0;
  check_requests(config);
  config.position_offset = 2;  // has a padding token
  check_requests(config);
  config.position_offset = 0;
  config.norm_placement = NormPlacement::kBefore;
  config.tie_word_embeddings = false;
  config.qkv_bias = config.mlp_bias = false;
  check_requests(config);
}

TEST("model: full ranking is the forward pass, the scores of all items, and the best of them") {
  for (const auto precision : {kFloat32, kBFloat16}) {
    check_ranking(sequence_config(), precision, 30, 20);
    TransformerConfig config = small_sequence_config(32, 1);
    config.tie_word_embeddings = false;
    config.item_feature_size = 0;
    check_ranking(config, precision, 9, 64);
  }
}

TEST("model: histories that are ranked are encoded in several passes where one would be too large") {
  TransformerConfig config = small_sequence_config(8, 1);
  config.num_hidden_layers = 1;
  config.intermediate_size = 8;
  check_ranking(config, kFloat32, 1200, 64);
}

TEST("model: a request to a catalogue so large that it is searched by way of quantised items") {
  check_requests(small_sequence_config(64, 1), (1 << 22) / 64 + 3, 2);
}
