#include "train/importance.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "test.h"

using namespace limbeck;

namespace {

TransformerConfig llama_like() {
  TransformerConfig config{};
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.intermediate_size = 6;
  config.max_position_embeddings = 8;
  config.norm = NormKind::kRmsNorm;
  config.norm_placement = NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = PositionKind::kRotary;
  config.rope_theta = 10000;
  config.causal = true;
  config.hidden_act = Activation::kSwiglu;
  config.tie_word_embeddings = false;
  return config;
}

const std::vector<int32_t> kIds = {1, 5, 3, 7, 2, 2, 9, 4, 10};
const std::vector<int32_t> kOffsets = {0, 4, 6, 9};
const std::vector<int32_t> kLabels = {5, 3, 7, -100, -100, -100, 4, 10, -100};

template <typename Body>
void run(Body&& body) {
  ThreadPool pool(2);
  Arena scratch, arena;
  Context context{pool, scratch};
  body(context, arena);
}

}  // namespace

TEST("squared gradients are the mean over labelled sequences of each one's squared gradient") {
  run([](Context& context, Arena& arena) {
    auto model = std::make_shared<Transformer>(llama_like());
    model->initialize(1, 0.3f);
    Importance importance(model);
    importance.add(context, arena, {kIds.data(), kOffsets.data(), nullptr, 9, 3}, kLabels.data());
    CHECK(importance.num_examples() == 2);

    OptimizerOptions options;
    options.kind = OptimizerKind::kNone;
    Trainer trainer(model, options);
    const Parameters& parameters = model->parameters();
    std::vector<double> expected(static_cast<size_t>(parameters.flat_count()));
    for (const auto& [begin, length] : {std::pair<int32_t, int32_t>{0, 4}, {6, 3}}) {
      const int32_t offsets[2] = {0, length};
      StepInputs inputs{};
      inputs.batch = {kIds.data() + begin, offsets, nullptr, length, 1};
      inputs.labels = kLabels.data() + begin;
      trainer.compute_gradients(context, arena, inputs);
      const float* gradients = model->parameters().gradients();
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += double{gradients[i]} * gradients[i] / 2;
    }
    double largest = 0;
    for (const Parameter& parameter : parameters.list()) {
      std::vector<float> out(static_cast<size_t>(parameter.count), NAN);
      importance.squared_gradients(parameter, out.data());
      for (size_t i = 0; i < out.size(); ++i) {
        const double value = expected[static_cast<size_t>(parameter.offset) + i];
        CHECK(std::fabs(out[i] - value) <= 1e-5 * value + 1e-12);
        largest = std::max(largest, value);
      }
    }
    CHECK(largest > 1e-4);
  });
}

TEST("sums by axis count every element of a parameter once on each of its axes") {
  const TransformerConfig config = llama_like();
  const Parameters parameters(config);
  // Values that tell by which parameters a sum was reached.
  std::vector<float> values(static_cast<size_t>(parameters.flat_count()));
  for (const Parameter& parameter : parameters.list()) {
    for (int64_t i = 0; i < parameter.count; ++i) values[static_cast<size_t>(parameter.offset + i)] = 1;
  }
  const AxisSums sums = sum_by_axis(config, parameters, values.data());
  const double d = 8, V = 11, I = 6, hd = 4, L = 2;
  // Word and output tables; per block qkv (32 rows) and mlp input (12 rows) read, attention output and mlp output
  // write; two norms a block and the last.
  for (double sum : sums.residual) CHECK(sum == 2 * V + L * (32 + 2 * I + 16 + I + 2) + 1);
  for (const auto& block : sums.intermediate) {
    for (double sum : block) CHECK(sum == 2 * d + d);  // gate and up rows, output column
  }
  for (const auto& block : sums.key_value_heads) {
    for (double sum : block) CHECK(sum == (2 * hd + hd + hd) * d + 2 * hd * d);  // 2 query heads, key, value; output
  }
  for (double sum : sums.layers) CHECK(sum == 32 * d + 16 * d + 2 * I * d + I * d + 2 * d);
}

TEST("saliency is the squared gradient times the square of the parameter") {
  run([](Context& context, Arena& arena) {
    auto model = std::make_shared<Transformer>(llama_like());
    model->initialize(1, 0.3f);
    Importance importance(model);
    importance.add(context, arena, {kIds.data(), kOffsets.data(), nullptr, 9, 3}, kLabels.data());
    const Parameters& parameters = model->parameters();
    double expected = 0;  // of the first block
    for (const Parameter& parameter : parameters.list()) {
      if (parameter.name.compare(0, 9, "layers.0.") != 0) continue;
      std::vector<float> squares(static_cast<size_t>(parameter.count));
      importance.squared_gradients(parameter, squares.data());
      const float* values = static_cast<const Transformer&>(*model).parameters().values() + parameter.offset;
      for (size_t i = 0; i < squares.size(); ++i) expected += double{squares[i]} * values[i] * values[i];
    }
    CHECK(expected > 0);
    CHECK(std::fabs(importance.saliency_by_axis().layers[0] - expected) < 1e-5 * expected);
  });
}

TEST("activations are mean absolute values, and sequences without labels count for them") {
  run([](Context& context, Arena& arena) {
    auto model = std::make_shared<Transformer>(llama_like());
    model->initialize(2, 0.3f);
    Importance importance(model);
    importance.add(context, arena, {kIds.data(), kOffsets.data(), nullptr, 9, 3}, kLabels.data());
    CHECK(importance.num_tokens() == 9);
    arena.reset();
    const Activations a = model->forward(context, arena, {kIds.data(), kOffsets.data(), nullptr, 9, 3}, {true});
    const AxisSums sums = importance.activation_by_axis();
    for (int64_t c = 0; c < 8; ++c) {
      double expected = 0;
      for (int64_t l = 0; l <= 2; ++l) {
        for (int64_t i = 0; i < 9; ++i) expected += std::fabs(a.hidden[l][i * 8 + c]) / 27;
      }
      CHECK(std::fabs(sums.residual[static_cast<size_t>(c)] - expected) < 1e-6);
    }
    double intermediate = 0, heads = 0;
    for (int64_t i = 0; i < 9; ++i) {
      intermediate += std::fabs(a.blocks[1].mlp_activated[i * 6 + 5]) / 9;
      for (int64_t c = 0; c < 8; ++c) heads += std::fabs(a.blocks[0].attended[i * 16 + 8 + c]) / 72;
    }
    CHECK(std::fabs(sums.intermediate[1][5] - intermediate) < 1e-6);
    CHECK(std::fabs(sums.key_value_heads[0][1] - heads) < 1e-6);
    for (size_t l = 0; l < 2; ++l) {
      double moved = 0;  // the residual stream, before the final norm
      for (int64_t i = 0; i < 9 * 8; ++i) moved += std::fabs(a.blocks[l].output[i] - a.blocks[l].input[i]) / 72;
      CHECK(std::fabs(sums.layers[l] - moved) < 1e-6);
    }
  });
}
