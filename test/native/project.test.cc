#include "model/project.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/rng.h"
#include "model_configs.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr ModelSizes kSizes{30, 24, 4, 4, 40, 16};

TransformerConfig gpt2_like() { return gpt2_config(kSizes); }

TransformerConfig llama_like() {
  TransformerConfig config = gpt2_like();
  config.num_attention_heads = 8;
  config.num_key_value_heads = 4;
  config.head_dim = 8;
  config.norm = NormKind::kRmsNorm;
  config.positions = PositionKind::kRotary;
  config.rope_theta = 10000;
  config.hidden_act = Activation::kSwiglu;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = false;
  config.tie_word_embeddings = false;
  return config;
}

TransformerConfig bert_like() { return bert_config(kSizes); }

TransformerConfig student_like() {
  TransformerConfig config = gpt2_like();
  config.item_feature_size = 7;
  return config;
}

Transformer random_model(const TransformerConfig& config) {
  Transformer model(config);
  uint64_t stream = 0;
  for (const Parameter& parameter : model.parameters().list()) {
    const Philox random{21, stream++};
    for (int64_t i = 0; i < parameter.count; ++i) {
      model.parameters().values()[parameter.offset + i] = 0.5f * random.normal(static_cast<uint64_t>(i));
    }
  }
  return model;
}

std::vector<int64_t> identity_layers(const TransformerConfig& config) {
  std::vector<int64_t> layers;
  for (int64_t l = 1; l <= config.num_hidden_layers; ++l) layers.push_back(l);
  return layers;
}

struct Machine {
  ThreadPool pool{2};
  Arena scratch, arena;
  Context context{pool, scratch};
};

using Projected = std::vector<ProjectedParameter>;

Projected run(const Transformer& source, const TransformerConfig& target, const ProjectionMap& map) {
  Machine machine;
  machine.context.precision = Precision::kBFloat16;  // makes no difference
  return project(machine.context, source, target, map);
}

Projected run(const Transformer& source, const TransformerConfig& target) {
  return run(source, target, {identity_layers(target), WidthMap::kSelection, nullptr});
}

const std::vector<float>* find(const Projected& projected, const std::string& name) {
  for (const ProjectedParameter& parameter : projected) {
    if (parameter.name == name) return &parameter.values;
  }
  return nullptr;
}

/// A model of the target's shape with the projected values, all of which it must have.
Transformer filled(const TransformerConfig& target, const Projected& projected) {
  Transformer model(target);
  for (const ProjectedParameter& parameter : projected) {
    const Parameter& into = model.parameters().find(parameter.name);
    CHECK(static_cast<int64_t>(parameter.values.size()) == into.count);
    std::copy(parameter.values.begin(), parameter.values.end(), model.parameters().values() + into.offset);
  }
  CHECK(projected.size() == model.parameters().list().size());
  return model;
}

/// Whether result [rows, columns] is source[rows][columns], exactly.
bool picks(const Projected& projected, const Transformer& source, const std::string& name,
           const std::string& source_name, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
  const std::vector<float>* values = find(projected, name);
  const Parameter& from = source.parameters().find(source_name);
  const float* x = source.parameters().values() + from.offset;
  const int64_t stride = from.shape.size() == 1 ? 1 : from.shape[1];
  if (values == nullptr || values->size() != rows.size() * columns.size()) return false;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < columns.size(); ++j) {
      if ((*values)[i * columns.size() + j] != x[rows[i] * stride + columns[j]]) return false;
    }
  }
  return true;
}

const std::vector<int64_t> kVector = {0};

std::vector<int64_t> first(int64_t count) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < count; ++i) indices.push_back(i);
  return indices;
}

/// Each head's channels, for the rows of queries, keys or values that begin at `offset`.
std::vector<int64_t> channels_of(const std::vector<int64_t>& heads, int64_t head_dim,
                                 const std::vector<int64_t>& channels, int64_t offset = 0) {
  std::vector<int64_t> indices;
  for (int64_t head : heads) {
    for (int64_t channel : channels) indices.push_back(offset + head * head_dim + channel);
  }
  return indices;
}

std::vector<int64_t> joined(std::vector<int64_t> a, const std::vector<int64_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The last hidden state of a fixed batch.
std::vector<float> last_hidden(const Transformer& model) {
  const TransformerConfig& config = model.config();
  Machine machine;
  const int32_t ids[9] = {3, 1, 4, 1, 5, 9, 2, 6, 5}, offsets[3] = {0, 5, 9};
  const Activations activations = model.forward(machine.context, machine.arena, {ids, offsets, nullptr, 9, 2}, {});
  const float* hidden = activations.hidden[config.num_hidden_layers];
  return {hidden, hidden + 9 * config.hidden_size};
}

/// Of a head without biases, for the fixed batch: [9, V].
std::vector<float> logits(const Transformer& model) {
  const auto d = static_cast<size_t>(model.config().hidden_size), v = static_cast<size_t>(model.config().vocab_size);
  const std::vector<float> hidden = last_hidden(model);
  const char* table = model.config().tie_word_embeddings ? "embeddings.word" : "head.output.weight";
  const float* e = model.parameters().values() + model.parameters().find(table).offset;
  std::vector<float> result(9 * v);
  for (size_t i = 0; i < 9 * v; ++i) {
    double sum = 0;
    for (size_t c = 0; c < d; ++c) sum += double{hidden[i / v * d + c]} * e[i % v * d + c];
    result[i] = static_cast<float>(sum);
  }
  return result;
}

void check_close(const std::vector<float>& values, const std::vector<float>& expected) {
  CHECK(values.size() == expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    CHECK(std::fabs(values[i] - expected[i]) < 5e-4f * (1 + std::fabs(expected[i])));
  }
}

/// Orthonormal rows [count, size] by Gram–Schmidt; `centred` ones sum to zero.
std::vector<float> random_components(int64_t count, int64_t size, bool centred = false) {
  const Philox random{6, 0};
  std::vector<std::vector<double>> rows;
  const std::vector<double> ones(static_cast<size_t>(size), 1 / std::sqrt(static_cast<double>(size)));
  for (int64_t i = 0; i < count; ++i) {
    std::vector<double> row;
    for (int64_t j = 0; j < size; ++j) row.push_back(random.normal(static_cast<uint64_t>(i * size + j)));
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<std::vector<double>> others = rows;
      if (centred) others.push_back(ones);
      for (const auto& other : others) {
        double along = 0;
        for (size_t j = 0; j < row.size(); ++j) along += row[j] * other[j];
        for (size_t j = 0; j < row.size(); ++j) row[j] -= along * other[j];
      }
    }
    double length = 0;
    for (double value : row) length += value * value;
    for (double& value : row) value /= std::sqrt(length);
    rows.push_back(row);
  }
  std::vector<float> components;
  for (const auto& row : rows) components.insert(components.end(), row.begin(), row.end());
  return components;
}

std::vector<float> permutation_components(const std::vector<int64_t>& kept, int64_t size) {
  std::vector<float> components(kept.size() * static_cast<size_t>(size), 0.0f);
  for (size_t i = 0; i < kept.size(); ++i) components[i * static_cast<size_t>(size) + static_cast<size_t>(kept[i])] = 1;
  return components;
}

}  // namespace

TEST("equal shapes and the identity layer map give the source, bit for bit") {
  for (const TransformerConfig& config : {gpt2_like(), llama_like(), bert_like(), student_like()}) {
    const Transformer source = random_model(config);
    for (WidthMap width : {WidthMap::kSelection, WidthMap::kPca}) {
      const Projected projected = run(source, config, {identity_layers(config), width, nullptr, {}});
      CHECK(projected.size() == source.parameters().list().size());
      for (const Parameter& parameter : source.parameters().list()) {
        const std::vector<float>* values = find(projected, parameter.name);
        CHECK(values != nullptr && static_cast<int64_t>(values->size()) == parameter.count &&
              std::memcmp(values->data(), source.parameters().values() + parameter.offset,
                          values->size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST("block i of the target is the mapped block of the source, in any order") {
  const Transformer source = random_model(gpt2_like());
  TransformerConfig target = gpt2_like();
  target.num_hidden_layers = 3;
  const Projected projected = run(source, target, {{4, 1, 1}, WidthMap::kSelection, nullptr});
  const std::vector<int64_t> d = first(24);
  CHECK(picks(projected, source, "layers.0.mlp.output.weight", "layers.3.mlp.output.weight", d, first(40)));
  CHECK(picks(projected, source, "layers.1.mlp.output.weight", "layers.0.mlp.output.weight", d, first(40)));
  CHECK(picks(projected, source, "layers.2.attention_norm.bias", "layers.0.attention_norm.bias", d, kVector));
}

TEST("selection takes evenly spread channels of every axis, whole heads first") {
  const Transformer source = random_model(gpt2_like());
  TransformerConfig target = gpt2_like();
  target.vocab_size = 20;
  target.max_position_embeddings = 5;
  target.hidden_size = 4;
  target.num_attention_heads = target.num_key_value_heads = 2;
  target.head_dim = 3;
  target.intermediate_size = 3;
  const Projected projected = run(source, target);
  // ⌊(2i + 1)·source/(2·target)⌋ by hand: 24 → 4, heads 4 → 2, channels 6 → 3, 40 → 3.
  const std::vector<int64_t> d = {3, 9, 15, 21}, heads = {1, 3}, channels = {1, 3, 5}, middle = {6, 20, 33};
  const std::vector<int64_t> attended = channels_of(heads, 6, channels);
  const std::vector<int64_t> qkv =
      joined(joined(attended, channels_of(heads, 6, channels, 24)), channels_of(heads, 6, channels, 48));
  CHECK(attended == std::vector<int64_t>({7, 9, 11, 19, 21, 23}));
  auto same = [&](const char* name, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
    return picks(projected, source, name, name, rows, columns);
  };
  CHECK(same("embeddings.word", first(20), d));
  CHECK(same("embeddings.position", first(5), d));
  CHECK(same("layers.2.attention_norm.weight", d, kVector));
  CHECK(same("layers.2.attention_norm.bias", d, kVector));
  CHECK(same("layers.2.attention.qkv.weight", qkv, d));
  CHECK(same("layers.2.attention.qkv.bias", qkv, kVector));
  CHECK(same("layers.2.attention.output.weight", d, attended));
  CHECK(same("layers.2.attention.output.bias", d, kVector));
  CHECK(same("layers.2.mlp_norm.weight", d, kVector));
  CHECK(same("layers.2.mlp.input.weight", middle, d));
  CHECK(same("layers.2.mlp.input.bias", middle, kVector));
  CHECK(same("layers.2.mlp.output.weight", d, middle));
  CHECK(same("layers.2.mlp.output.bias", d, kVector));
  CHECK(same("final_norm.weight", d, kVector));
}

TEST("selection cuts token types, and maps the masked head and the projection of item features") {
  const std::vector<int64_t> d = {3, 9, 15, 21};
  TransformerConfig target = bert_like();
  target.hidden_size = 4;
  target.vocab_size = 10;
  target.type_vocab_size = 1;
  const Transformer bert = random_model(bert_like());
  Projected projected = run(bert, target);
  CHECK(picks(projected, bert, "embeddings.token_type", "embeddings.token_type", {0}, d));
  CHECK(picks(projected, bert, "embeddings.norm.bias", "embeddings.norm.bias", d, kVector));
  CHECK(picks(projected, bert, "head.dense.weight", "head.dense.weight", d, d));
  CHECK(picks(projected, bert, "head.norm.weight", "head.norm.weight", d, kVector));
  CHECK(picks(projected, bert, "head.bias", "head.bias", first(10), kVector));

  target = student_like();
  target.hidden_size = 4;
  const Transformer student = random_model(student_like());
  projected = run(student, target);
  CHECK(picks(projected, student, "item_projection.weight", "item_projection.weight", d, first(7)));
}

TEST("positions, and the row of padding tokens before them, stay with themselves") {
  TransformerConfig config = bert_like();
  config.position_offset = 2;
  const Transformer source = random_model(config);
  const auto rows_of = [&](const TransformerConfig& target, const std::vector<int64_t>& rows) {
    const Projected projected = run(source, target);
    return picks(projected, source, "embeddings.position", "embeddings.position", rows, first(24));
  };
  CHECK(rows_of(config, first(18)));
  TransformerConfig target = config;
  target.max_position_embeddings = 5;
  CHECK(rows_of(target, first(7)));
  target.position_offset = 1;
  CHECK(rows_of(target, {1, 2, 3, 4, 5, 6}));
  target.position_offset = 3;
  CHECK(rows_of(target, {0, 0, 1, 2, 3, 4, 5, 6}));
  target.position_offset = 0;
  CHECK(rows_of(target, {2, 3, 4, 5, 6}));
}

TEST("rotary heads keep pairs that turn as fast, and query heads stay with their key-value head") {
  const Transformer source = random_model(llama_like());
  TransformerConfig target = llama_like();
  target.num_attention_heads = 4;
  target.num_key_value_heads = 2;
  target.head_dim = 4;
  target.intermediate_size = 5;
  const Projected projected = run(source, target);
  // Pair j of head_dim 8 turns by θ^(−2j/8) a position, pair i of head_dim 4 by θ^(−2i/4): j = 2i.
  const std::vector<int64_t> channels = {0, 2, 4, 6};  // the pairs (0, 4) and (2, 6)
  // Key-value heads 1 and 3 stay; query heads 2, 3 read the first and 6, 7 the second.
  const std::vector<int64_t> attended = channels_of({2, 3, 6, 7}, 8, channels);
  const std::vector<int64_t> qkv =
      joined(joined(attended, channels_of({1, 3}, 8, channels, 64)), channels_of({1, 3}, 8, channels, 96));
  CHECK(picks(projected, source, "layers.1.attention.qkv.weight", "layers.1.attention.qkv.weight", qkv, first(24)));
  CHECK(picks(projected, source, "layers.1.attention.output.weight", "layers.1.attention.output.weight", first(24),
              attended));
  // SwiGLU: the same channels of gate and up.
  const std::vector<int64_t> gate = {4, 12, 20, 28, 36}, up = {44, 52, 60, 68, 76};
  CHECK(
      picks(projected, source, "layers.1.mlp.input.weight", "layers.1.mlp.input.weight", joined(gate, up), first(24)));
  CHECK(picks(projected, source, "layers.1.mlp.output.weight", "layers.1.mlp.output.weight", first(24), gate));
}

TEST("a target with larger groups takes its query heads from all of the source's") {
  const Transformer source = random_model(llama_like());
  TransformerConfig target = llama_like();
  target.num_key_value_heads = 2;
  const std::vector<int64_t> qkv =
      joined(joined(first(64), channels_of({1, 3}, 8, first(8), 64)), channels_of({1, 3}, 8, first(8), 96));
  CHECK(picks(run(source, target), source, "layers.0.attention.qkv.weight", "layers.0.attention.qkv.weight", qkv,
              first(24)));
}

TEST("pca onto single channels gives exactly those channels") {
  for_each_isa([] {
    const std::vector<int64_t> kept = {5, 0, 23, 11, 12};
    const std::vector<float> components = permutation_components(kept, 24);
    for (const TransformerConfig& config : {gpt2_like(), bert_like(), student_like()}) {
      Transformer source = random_model(config);
      // Gains of one and biases of zero are no news to the layers that read a norm.
      for (const Parameter& parameter : source.parameters().list()) {
        if (parameter.name.find("norm.") == std::string::npos) continue;
        const bool is_gain = parameter.name.find("norm.weight") != std::string::npos;
        std::fill_n(source.parameters().values() + parameter.offset, parameter.count, is_gain ? 1.0f : 0.0f);
      }
      TransformerConfig target = config;
      target.hidden_size = 5;
      target.num_attention_heads = target.num_key_value_heads = 2;
      target.intermediate_size = 3;
      const Projected projected = run(source, target, {identity_layers(target), WidthMap::kPca, components.data()});
      const std::vector<int64_t> attended = channels_of({1, 3}, 6, first(6)), middle = {6, 20, 33};
      const std::vector<int64_t> qkv =
          joined(joined(attended, channels_of({1, 3}, 6, first(6), 24)), channels_of({1, 3}, 6, first(6), 48));
      auto same = [&](const char* name, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
        return picks(projected, source, name, name, rows, columns);
      };
      CHECK(same("embeddings.word", first(30), kept));
      CHECK(same("embeddings.position", first(16), kept));
      for (float gain : *find(projected, "layers.3.attention_norm.weight")) {
        CHECK(std::fabs(gain - std::sqrt(24.0 / 5)) < 1e-6);
      }
      CHECK(same("layers.3.attention_norm.bias", kept, kVector));
      CHECK(same("layers.3.attention.qkv.weight", qkv, kept));
      CHECK(same("layers.3.attention.qkv.bias", qkv, kVector));
      CHECK(same("layers.3.attention.output.weight", kept, attended));
      CHECK(same("layers.3.attention.output.bias", kept, kVector));
      CHECK(same("layers.3.mlp.input.weight", middle, kept));
      CHECK(same("layers.3.mlp.output.weight", kept, middle));
      if (config.masked_lm_head) CHECK(same("head.dense.weight", kept, kept));
      if (config.item_feature_size > 0) CHECK(same("item_projection.weight", kept, first(7)));
    }
  });
}

TEST("a permuted residual stream leaves what the model computes as it was, gains and biases included") {
  for (const TransformerConfig& config : {gpt2_like(), llama_like(), bert_like()}) {
    const Transformer source = random_model(config);
    std::vector<int64_t> order = first(24);
    std::rotate(order.begin(), order.begin() + 7, order.end());
    std::swap(order[2], order[19]);
    const std::vector<float> components = permutation_components(order, 24);
    const Transformer turned =
        filled(config, run(source, config, {identity_layers(config), WidthMap::kPca, components.data()}));
    check_close(logits(turned), logits(source));
  }
}

// A norm without gains commutes with rotations (Ashkboos et al. 2024, arXiv:2401.15024, §3.2). Gains go into the layers
// that read a norm, and where that cannot be, because the table is tied or norms come after the blocks, the axes are
// turned back so far that norms can hold them.
TEST("a rotated residual stream leaves what the model computes as it was") {
  TransformerConfig qwen = llama_like();
  qwen.qkv_bias = qwen.qk_norm = true;
  TransformerConfig tied = llama_like();
  tied.tie_word_embeddings = true;
  for (const TransformerConfig& config : {gpt2_like(), llama_like(), qwen, tied, bert_like()}) {
    Transformer source = random_model(config);
    for (const Parameter& parameter : source.parameters().list()) {
      // Gains that are close to each other are hard to tell apart.
      if (parameter.name.find("norm.weight") == std::string::npos || parameter.count != 24) continue;
      for (int64_t c = 0; c < 24; ++c) {
        float& gain = source.parameters().values()[parameter.offset + c];
        gain = 0.1f * gain + 0.5f + 0.1f * static_cast<float>(7 * c % 24);
      }
    }
    const std::vector<float> components = random_components(24, 24);
    const Transformer turned =
        filled(config, run(source, config, {identity_layers(config), WidthMap::kPca, components.data(), {}}));
    check_close(logits(turned), logits(source));
  }
}

TEST("how the last gains of a tied table turn the axes does not depend on their size") {
  TransformerConfig config = llama_like();
  config.tie_word_embeddings = true;
  Transformer source = random_model(config);
  const std::vector<float> components = random_components(24, 24);
  const ProjectionMap map{identity_layers(config), WidthMap::kPca, components.data(), {}};
  const Projected projected = run(source, config, map);
  const Parameter& gain = source.parameters().find("final_norm.weight");
  for (int64_t c = 0; c < 24; ++c) source.parameters().values()[gain.offset + c] *= 0x1p-24f;
  CHECK(*find(run(source, config, map), "embeddings.word") == *find(projected, "embeddings.word"));
}

TEST("pca loses nothing of a residual stream that stays inside its rows") {
  for (const TransformerConfig& config : {gpt2_like(), llama_like()}) {
    // Of layer norms the last row is what no state has; the target's norms remove it.
    const bool centred = config.norm == NormKind::kLayerNorm;
    std::vector<float> P = random_components(8, 24, centred);
    const size_t rows = centred ? 7 : 8;
    Transformer source = random_model(config);
    // x ← x·PᵀP for rows of x [count, 24], or of its transpose.
    const auto confine = [&](const std::string& name, bool writes_rows) {
      const Parameter& parameter = source.parameters().find(name);
      float* x = source.parameters().values() + parameter.offset;
      const size_t count = static_cast<size_t>(parameter.count) / 24;
      for (size_t i = 0; i < count; ++i) {
        const auto at = [&](size_t c) -> float& { return writes_rows ? x[c * count + i] : x[i * 24 + c]; };
        double kept[24] = {};
        for (size_t k = 0; k < rows; ++k) {
          double along = 0;
          for (size_t c = 0; c < 24; ++c) along += double{P[k * 24 + c]} * at(c);
          for (size_t c = 0; c < 24; ++c) kept[c] += along * P[k * 24 + c];
        }
        for (size_t c = 0; c < 24; ++c) at(c) = static_cast<float>(kept[c]);
      }
    };
    for (const Parameter& parameter : source.parameters().list()) {
      const std::string& name = parameter.name;
      if (name.find("embeddings.") == 0) confine(name, false);
      if (name.find("output.") != std::string::npos && name.find("layers.") == 0) confine(name, true);
    }
    if (config.tie_word_embeddings) {
      const Parameter& gain = source.parameters().find("final_norm.weight");
      std::fill_n(source.parameters().values() + gain.offset, gain.count, 1.3f);
    }
    TransformerConfig target = config;
    target.hidden_size = 8;
    const Transformer narrow = filled(target, run(source, target, {identity_layers(target), WidthMap::kPca, P.data()}));
    check_close(logits(narrow), logits(source));
  }
}

TEST("narrower heads keep what values and outputs, and queries and keys, do together") {
  for (const bool grouped : {false, true}) {
    TransformerConfig config = gpt2_like();
    if (grouped) config.num_key_value_heads = 2;
    Transformer source = random_model(config);
    // All channels of a head are mixtures of two.
    const auto mix = [&](const std::string& name, int64_t columns) {
      float* x = source.parameters().values() + source.parameters().find(name).offset;
      for (int64_t head = 0; head < config.num_attention_heads + 2 * config.num_key_value_heads; ++head) {
        for (int64_t channel = 2; channel < 6; ++channel) {
          for (int64_t c = 0; c < columns; ++c) {
            const float* first_two = x + head * 6 * columns;
            x[(head * 6 + channel) * columns + c] = std::sin(static_cast<float>(head + channel)) * first_two[c] +
                                                    std::cos(static_cast<float>(3 * channel)) * first_two[columns + c];
          }
        }
      }
    };
    for (const std::string block : {"0", "1", "2", "3"}) {
      mix("layers." + block + ".attention.qkv.weight", 24);
      mix("layers." + block + ".attention.qkv.bias", 1);
    }
    TransformerConfig target = config;
    target.head_dim = 2;
    const Transformer narrow =
        filled(target, run(source, target, {identity_layers(target), WidthMap::kPca, nullptr, {}}));
    check_close(logits(narrow), logits(source));
    // With the residual stream turned as well.
    const std::vector<float> P = random_components(24, 24);
    const Transformer turned =
        filled(target, run(source, target, {identity_layers(target), WidthMap::kPca, P.data(), {}}));
    check_close(logits(turned), logits(source));
  }
}

TEST("values of narrower heads are nearest to the source's, and rotary queries and keys are those that turn as fast") {
  TransformerConfig config = llama_like();
  config.qk_norm = true;
  const Transformer source = random_model(config);
  TransformerConfig target = config;
  target.head_dim = 6;
  const Projected narrow = run(source, target, {identity_layers(target), WidthMap::kPca, nullptr, {}});
  const Projected selected = run(source, target);
  const std::vector<int64_t> channels = {0, 1, 3, 4, 5, 7};
  for (const std::string name : {"layers.1.attention.q_norm.weight", "layers.1.attention.k_norm.weight"}) {
    CHECK(picks(narrow, source, name, name, channels, kVector));
  }
  const std::string qkv = "layers.1.attention.qkv.weight", output = "layers.1.attention.output.weight";
  const std::vector<float>& picked = *find(selected, qkv);
  CHECK(std::equal(picked.begin(), picked.begin() + 12 * 6 * 24, find(narrow, qkv)->begin()));
  // ‖O·V − what the projection has of it‖² over the query heads; value heads come behind 8 query and 4 key heads.
  const float* v = source.parameters().values() + source.parameters().find(qkv).offset + 12 * 8 * 24;
  const float* o = source.parameters().values() + source.parameters().find(output).offset;
  const auto error = [&](const Projected& projected) {
    const float *V = find(projected, qkv)->data() + 12 * 6 * 24, *O = find(projected, output)->data();
    double sum = 0;
    for (int64_t head = 0; head < 8; ++head) {
      for (int64_t r = 0; r < 24; ++r) {
        for (int64_t c = 0; c < 24; ++c) {
          double difference = 0;
          for (int64_t i = 0; i < 8; ++i) {
            difference += double{o[r * 64 + head * 8 + i]} * v[(head / 2 * 8 + i) * 24 + c];
          }
          for (int64_t i = 0; i < 6; ++i) {
            difference -= double{O[r * 48 + head * 6 + i]} * V[(head / 2 * 6 + i) * 24 + c];
          }
          sum += difference * difference;
        }
      }
    }
    return sum;
  };
  CHECK(error(narrow) < 0.5 * error(selected));
}

TEST("pca keeps the heads and intermediate channels that are chosen") {
  const Transformer source = random_model(llama_like());
  TransformerConfig target = llama_like();
  target.num_attention_heads = 4;
  target.num_key_value_heads = 2;
  target.intermediate_size = 3;
  const std::vector<float> P = permutation_components(first(24), 24);
  ProjectionMap map{identity_layers(target), WidthMap::kPca, P.data(), {}};
  map.channels.key_value_heads.assign(4, {0, 3});
  map.channels.intermediate.assign(4, {1, 2, 39});
  const Projected projected = run(source, target, map);
  CHECK(picks(projected, source, "layers.1.mlp.output.weight", "layers.1.mlp.output.weight", first(24), {1, 2, 39}));
  CHECK(picks(projected, source, "layers.1.attention.output.weight", "layers.1.attention.output.weight", first(24),
              channels_of({0, 1, 6, 7}, 8, first(8))));
  map.channels.residual = first(24);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(source, target, map));
}

TEST("after the blocks pca turns gains by √(d/5)·P∘P, biases by P, and the masked head's product on both sides") {
  const std::vector<float> P = random_components(5, 24);
  TransformerConfig config = bert_like();
  config.norm = NormKind::kRmsNorm;
  Transformer source = random_model(config);
  // Gains that are equal in the mean: nothing else turns the rows of P among themselves.
  const auto set_gain = [&](const std::string& name, const auto& gain_of) {
    const Parameter& parameter = source.parameters().find(name);
    for (int64_t c = 0; c < 24; ++c) source.parameters().values()[parameter.offset + c] = gain_of(c);
  };
  for (const Parameter& parameter : source.parameters().list()) {
    if (parameter.name.find("norm.weight") != std::string::npos) set_gain(parameter.name, [](int64_t) { return 1.0f; });
  }
  set_gain("layers.1.mlp_norm.weight", [](int64_t c) { return 1 + 0.04f * static_cast<float>(c); });
  set_gain("layers.2.mlp_norm.weight", [](int64_t c) { return 1 - 0.04f * static_cast<float>(c); });
  TransformerConfig target = config;
  target.hidden_size = 5;
  const Projected projected = run(source, target, {identity_layers(target), WidthMap::kPca, P.data()});
  auto value = [&](const char* name) { return source.parameters().values() + source.parameters().find(name).offset; };
  for (size_t i = 0; i < 5; ++i) {
    double gain = 0, bias = 0;
    for (size_t j = 0; j < 24; ++j) {
      gain += std::sqrt(24.0 / 5) * P[i * 24 + j] * P[i * 24 + j] * value("layers.1.mlp_norm.weight")[j];
      bias += double{P[i * 24 + j]} * value("layers.1.mlp.output.bias")[j];
    }
    CHECK(std::fabs((*find(projected, "layers.1.mlp_norm.weight"))[i] - gain) < 1e-6);
    CHECK(std::fabs((*find(projected, "layers.1.mlp.output.bias"))[i] - bias) < 1e-6);
    for (size_t k = 0; k < 5; ++k) {
      double product = 0;
      for (size_t j = 0; j < 24; ++j) {
        for (size_t l = 0; l < 24; ++l) {
          product += double{P[i * 24 + j]} * value("head.dense.weight")[j * 24 + l] * P[k * 24 + l];
        }
      }
      CHECK(std::fabs((*find(projected, "head.dense.weight"))[i * 5 + k] - product) < 1e-5);
    }
  }
}

TEST("what the source lacks, or has in another width of item features, is left out") {
  TransformerConfig target = gpt2_like();
  target.tie_word_embeddings = false;
  CHECK(find(run(random_model(gpt2_like()), target), "head.output.weight") == nullptr);
  TransformerConfig tied = llama_like();
  tied.tie_word_embeddings = true;
  const Transformer llama = random_model(llama_like());
  Projected projected = run(llama, tied);
  CHECK(find(projected, "head.output.weight") == nullptr);
  CHECK(picks(projected, llama, "embeddings.word", "embeddings.word", first(30), first(24)));
  TransformerConfig with_biases = llama_like();
  with_biases.qkv_bias = true;
  projected = run(llama, with_biases);
  CHECK(find(projected, "layers.0.attention.qkv.bias") == nullptr);
  CHECK(find(projected, "layers.0.attention.qkv.weight") != nullptr);
  TransformerConfig other_features = student_like();
  other_features.item_feature_size = 6;
  projected = run(random_model(student_like()), other_features);
  CHECK(find(projected, "item_projection.weight") == nullptr);
  CHECK(find(projected, "embeddings.word") != nullptr);
}

TEST("a target without item features has them in its table") {
  Transformer source = random_model(student_like());
  std::vector<float> features(30 * 7);
  for (size_t i = 0; i < features.size(); ++i) features[i] = std::sin(static_cast<float>(i));
  source.set_item_features(features.data());
  const Projected projected = run(source, gpt2_like());
  const float* values = source.parameters().values();
  const float* v = values + source.parameters().find("embeddings.word").offset;
  const float* A = values + source.parameters().find("item_projection.weight").offset;  // [24, 7]
  for (size_t i = 0; i < 30; ++i) {
    for (size_t c = 0; c < 24; ++c) {
      double expected = v[i * 24 + c];
      for (size_t f = 0; f < 7; ++f) expected += double{A[c * 7 + f]} * features[i * 7 + f];
      CHECK(std::fabs((*find(projected, "embeddings.word"))[i * 24 + c] - expected) < 1e-5);
    }
  }
}

TEST("project refuses maps and targets that do not fit the source") {
  const Transformer source = random_model(gpt2_like());
  auto refuses = [&](const TransformerConfig& target, const ProjectionMap& map) {
    CHECK_ERROR("ERR_INVALID_ARGUMENT", run(source, target, map));
  };
  const TransformerConfig good = gpt2_like();
  refuses(good, {{1, 2, 3}, WidthMap::kSelection, nullptr});
  refuses(good, {{1, 2, 3, 5}, WidthMap::kSelection, nullptr});
  refuses(good, {{0, 1, 2, 3}, WidthMap::kSelection, nullptr});
  TransformerConfig narrower = good;
  narrower.hidden_size = 12;
  refuses(narrower, {{1, 2, 3, 4}, WidthMap::kPca, nullptr});
  std::vector<float> components = random_components(12, 24);
  components[40] = std::nanf("");
  refuses(narrower, {{1, 2, 3, 4}, WidthMap::kPca, components.data()});
  Transformer damaged = random_model(good);
  damaged.parameters().values()[damaged.parameters().find("layers.1.attention.output.weight").offset] = INFINITY;
  TransformerConfig narrow_heads = good;
  narrow_heads.head_dim = 2;
  CHECK_ERROR("ERR_NOT_FINITE", run(damaged, narrow_heads, {{1, 2, 3, 4}, WidthMap::kPca, nullptr}));
  const ProjectionMap map{{1, 2, 3, 4}, WidthMap::kSelection, nullptr};
  TransformerConfig target = good;
  target.hidden_size = 25;
  refuses(target, map);
  target = good;
  target.num_attention_heads = 8;
  refuses(target, map);
  target = good;
  target.head_dim = 7;
  refuses(target, map);
  target = good;
  target.intermediate_size = 41;
  refuses(target, map);
  target = good;
  target.vocab_size = 31;
  refuses(target, map);
  target = good;
  target.max_position_embeddings = 17;
  refuses(target, map);
  target = good;
  target.hidden_act = Activation::kSwiglu;
  refuses(target, map);
  target = good;
  target.hidden_size = 0;
  refuses(target, map);
}

TEST("channels given are those that a selection keeps") {
  TransformerConfig source_config = llama_like(), target = source_config;
  target.hidden_size = 12;
  target.num_hidden_layers = 2;
  target.num_attention_heads = 4;
  target.num_key_value_heads = 2;
  target.intermediate_size = 10;
  Transformer source(source_config);
  source.initialize(1, 0.1f);
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  ProjectionMap map;
  map.layers = {2, 4};
  for (int64_t i = 0; i < 12; ++i) map.channels.residual.push_back(i < 6 ? i : 12 + i);
  map.channels.key_value_heads = {{0, 3}, {1, 2}};
  map.channels.intermediate.resize(2);
  for (int64_t i = 0; i < 10; ++i) {
    map.channels.intermediate[0].push_back(3 * i);
    map.channels.intermediate[1].push_back(30 + i);
  }
  const std::vector<ProjectedParameter> projected = project(context, source, target, map);
  const auto values = [&](const std::string& name) -> const std::vector<float>& {
    for (const ProjectedParameter& parameter : projected) {
      if (parameter.name == name) return parameter.values;
    }
    return projected.front().values;
  };
  const auto of_source = [&](const std::string& name, int64_t index) {
    return source.parameters().values()[source.parameters().find(name).offset + index];
  };
  // Row 17 of the first block's up projection, column 8.
  CHECK(values("layers.0.mlp.input.weight")[17 * 12 + 8] ==
        of_source("layers.1.mlp.input.weight", (40 + 21) * 24 + 20));
  CHECK(values("layers.1.mlp.output.weight")[7 * 10 + 4] == of_source("layers.3.mlp.output.weight", 19 * 40 + 34));
  // Third query head, that is the first of the second group, which is key-value head 3: query head 6.
  CHECK(values("layers.0.attention.qkv.weight")[(2 * 8 + 1) * 12 + 6] ==
        of_source("layers.1.attention.qkv.weight", (6 * 8 + 1) * 24 + 18));
  // Second value head of the second block is the source's head 2, behind 8 query and 4 key heads.
  CHECK(values("layers.1.attention.qkv.weight")[((4 + 2 + 1) * 8 + 5) * 12] ==
        of_source("layers.3.attention.qkv.weight", ((8 + 4 + 2) * 8 + 5) * 24));
  CHECK(values("layers.0.attention_norm.weight")[11] == of_source("layers.1.attention_norm.weight", 23));

  const auto refuses = [&](void (*change)(ProjectionMap&)) {
    ProjectionMap wrong = map;
    change(wrong);
    CHECK_ERROR("ERR_INVALID_ARGUMENT", project(context, source, target, wrong));
  };
  refuses([](ProjectionMap& wrong) { wrong.channels.residual.pop_back(); });
  refuses([](ProjectionMap& wrong) { wrong.channels.residual.back() = 24; });
  refuses([](ProjectionMap& wrong) { wrong.channels.residual[1] = 0; });
  refuses([](ProjectionMap& wrong) { wrong.channels.intermediate.pop_back(); });
  refuses([](ProjectionMap& wrong) { wrong.channels.key_value_heads[1].clear(); });
}
