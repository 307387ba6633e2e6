#include "retrieve/text_encoder.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr int64_t kWidth = 24, kLayers = 3;

TransformerConfig language_model(bool bidirectional) {
  TransformerConfig config{};
  config.vocab_size = 50;
  config.hidden_size = kWidth;
  config.num_hidden_layers = kLayers;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 6;
  config.intermediate_size = 40;
  config.max_position_embeddings = 16;
  config.norm = bidirectional ? NormKind::kLayerNorm : NormKind::kRmsNorm;
  config.norm_placement = bidirectional ? NormPlacement::kAfter : NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = bidirectional ? PositionKind::kLearned : PositionKind::kRotary;
  config.rope_theta = 10000;
  config.type_vocab_size = bidirectional ? 2 : 0;
  config.causal = !bidirectional;
  config.hidden_act = bidirectional ? Activation::kGeluErf : Activation::kSwiglu;
  config.tie_word_embeddings = true;
  return config;
}

std::vector<float> normals(int64_t count, uint64_t stream) {
  const Philox random{5, stream};
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(random.normal(static_cast<uint64_t>(i)));
  return values;
}

TextFusion fusion(bool concatenate, const std::vector<int64_t>& layers, int64_t feature_size) {
  const auto count = static_cast<int64_t>(layers.size());
  const int64_t columns = kWidth * (concatenate ? count : 1);
  return {layers, concatenate, normals(concatenate ? 0 : count, 1), normals(columns, 2),
          normals(feature_size * columns, 3)};
}

struct Texts {
  std::vector<int32_t> ids = {3, 49, 0, 7, 7, 21, 30, 8, 1, 2, 44};
  std::vector<int32_t> offsets = {0, 4, 5, 11};
  Batch batch() const {
    return {ids.data(), offsets.data(), nullptr, static_cast<int64_t>(ids.size()),
            static_cast<int64_t>(offsets.size()) - 1};
  }
};

/// (fused − mean)·componentsᵀ of the mean-pooled hidden states, in plain loops of double.
std::vector<double> reference(const Transformer& model, const TextFusion& fusion, const Batch& batch,
                              int64_t feature_size) {
  ThreadPool pool(1);
  Arena scratch, arena;
  Context context{pool, scratch};
  const Activations activations = model.forward(context, arena, batch, {});
  const size_t columns = fusion.mean.size();
  std::vector<double> features;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    std::vector<double> fused(columns, 0);
    for (size_t i = 0; i < fusion.layers.size(); ++i) {
      for (int64_t c = 0; c < kWidth; ++c) {
        double sum = 0;
        for (int64_t t = batch.sequence_offsets[s]; t < batch.sequence_offsets[s + 1]; ++t) {
          sum += activations.hidden[fusion.layers[i]][t * kWidth + c];
        }
        const double pooled = sum / (batch.sequence_offsets[s + 1] - batch.sequence_offsets[s]);
        if (fusion.concatenate) {
          fused[i * kWidth + static_cast<size_t>(c)] = pooled;
        } else {
          fused[static_cast<size_t>(c)] += fusion.weights[i] * pooled;
        }
      }
    }
    for (int64_t f = 0; f < feature_size; ++f) {
      double sum = 0;
      for (size_t c = 0; c < columns; ++c) {
        sum += (fused[c] - fusion.mean[c]) * fusion.components[static_cast<size_t>(f) * columns + c];
      }
      features.push_back(sum);
    }
  }
  return features;
}

bool is_near(const std::vector<float>& features, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(std::fabs(features[i] - expected[i]) < 4e-5 * (1 + std::fabs(expected[i])))) return false;
  }
  return features.size() == expected.size();
}

}  // namespace

TEST("text features equal pooled, fused and reduced hidden states, for both ways to fuse") {
  for_each_isa([] {
    for (const bool bidirectional : {false, true}) {
      Transformer model(language_model(bidirectional));
      model.initialize(9, 0.5f);
      for (const bool concatenate : {false, true}) {
        for (const std::vector<int64_t>& layers : {std::vector<int64_t>{3}, {0, 2, 3}, {3, 1}}) {
          const TextFusion how = fusion(concatenate, layers, 5);
          TextEncoder encoder(model, how);
          CHECK(encoder.feature_size() == 5);
          const Texts texts;
          std::vector<float> features(15);
          encoder.encode(texts.batch(), features.data());
          CHECK(is_near(features, reference(model, how, texts.batch(), 5)));
        }
      }
    }
  });
}

TEST("a text's features do not depend on the texts beside it or before it") {
  Transformer model(language_model(false));
  model.initialize(9, 0.5f);
  TextEncoder encoder(model, fusion(false, {1, 3}, 7));
  const Texts texts;
  std::vector<float> together(21), alone(7);
  encoder.encode(texts.batch(), together.data());
  const int32_t offsets[2] = {0, 6};
  encoder.encode({texts.ids.data() + 5, offsets, nullptr, 6, 1}, alone.data());
  for (size_t i = 0; i < 7; ++i) CHECK(std::fabs(alone[i] - together[14 + i]) < 1e-4f);
}

TEST("an encoder is a snapshot: training the model afterwards does not change it") {
  Transformer model(language_model(false));
  model.initialize(9, 0.5f);
  TextEncoder encoder(model, fusion(false, {3}, 4));
  const Texts texts;
  std::vector<float> before(12), after(12);
  encoder.encode(texts.batch(), before.data());
  model.initialize(10, 0.5f);
  encoder.encode(texts.batch(), after.data());
  CHECK(before == after);
}

TEST("a text encoder refuses layers, shapes and batches that do not fit") {
  const Transformer model(language_model(false));
  auto refuses = [&](const char* code, const TextFusion& how) { CHECK_ERROR(code, TextEncoder(model, how)); };
  const TextFusion good = fusion(false, {1, 3}, 2);
  TextFusion bad = good;
  bad.layers = {1, kLayers + 1};
  refuses("ERR_INVALID_ARGUMENT", bad);
  bad.layers = {-1, 0};
  refuses("ERR_INVALID_ARGUMENT", bad);
  bad.layers = {};
  refuses("ERR_INVALID_ARGUMENT", bad);
  bad = good;
  bad.weights.pop_back();
  refuses("ERR_SHAPE_MISMATCH", bad);
  bad = good;
  bad.mean.pop_back();
  refuses("ERR_SHAPE_MISMATCH", bad);
  bad = good;
  bad.components.pop_back();
  refuses("ERR_SHAPE_MISMATCH", bad);
  bad.components.clear();
  refuses("ERR_SHAPE_MISMATCH", bad);
  bad = good;
  bad.concatenate = true;  // mean and components of one layer's width
  refuses("ERR_SHAPE_MISMATCH", bad);

  TextEncoder encoder(model, good);
  std::vector<float> features(6);
  Texts texts;
  texts.ids[3] = 50;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", encoder.encode(texts.batch(), features.data()));
  Texts empty;
  empty.offsets[1] = 0;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", encoder.encode(empty.batch(), features.data()));
}
