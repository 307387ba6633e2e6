#include "cuda/sequence_encoder.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "model/inference.h"

// The encoder is compared with the CPU's forward pass, of parameters that bf16 holds exactly.

using namespace limbeck;
using namespace limbeck_test;
using cuda::can_encode_sequence;
using cuda::encode_sequence;
using cuda::SequenceEncoder;

namespace {

constexpr size_t kSharedBytes = 227 * 1024;

TransformerConfig student(int64_t width, int64_t heads, int64_t head_dim, int64_t intermediate, int64_t layers) {
  TransformerConfig config{};
  config.vocab_size = 50;
  config.hidden_size = width;
  config.num_hidden_layers = layers;
  config.num_attention_heads = config.num_key_value_heads = heads;
  config.head_dim = head_dim;
  config.intermediate_size = intermediate;
  config.max_position_embeddings = 128;
  config.norm = NormKind::kLayerNorm;
  config.norm_placement = NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = PositionKind::kLearned;
  config.causal = true;
  config.hidden_act = Activation::kGeluTanh;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

/// A model on the CPU, and its parameters in device memory.
struct Student {
  explicit Student(const TransformerConfig& config) : config(config), host(config) {
    host.initialize(5, 0.15f);
    Parameters& parameters = host.parameters();
    float* values = parameters.values();
    for (const Parameter& parameter : parameters.list()) {
      const std::vector<float> noise =
          random_floats(parameter.count, static_cast<uint64_t>(parameter.offset) + 3, 0.2f);
      for (int64_t i = 0; i < parameter.count; ++i) {
        float& value = values[parameter.offset + i];
        if (parameter.shape.size() == 1) value += noise[static_cast<size_t>(i)];
        value = rounded<bf16>(value);
      }
    }
    const auto master = [&](const std::string& name) -> const float* {
      if (!parameters.has(name)) return nullptr;
      const Parameter& parameter = parameters.find(name);
      const float* from = parameters.values() + parameter.offset;
      floats.push_back(std::make_unique<DeviceArray<float>>(std::vector<float>(from, from + parameter.count)));
      return floats.back()->data();
    };
    const auto compute = [&](const std::string& name) -> const bf16* {
      if (!parameters.has(name)) return nullptr;
      const Parameter& parameter = parameters.find(name);
      const float* from = parameters.values() + parameter.offset;
      halves.push_back(
          std::make_unique<DeviceArray<bf16>>(converted<bf16>(std::vector<float>(from, from + parameter.count))));
      return halves.back()->data();
    };
    const bool norm_after = config.norm_placement == NormPlacement::kAfter;
    const std::string outer = norm_after ? "embeddings.norm" : "final_norm";
    encoder = {static_cast<int>(config.num_hidden_layers),
               static_cast<int>(config.hidden_size),
               static_cast<int>(config.num_attention_heads),
               static_cast<int>(config.head_dim),
               static_cast<int>(config.intermediate_size),
               config.norm_eps,
               norm_after,
               config.hidden_act == Activation::kGeluErf,
               compute("embeddings.word"),
               compute("embeddings.position"),
               master(outer + ".weight"),
               master(outer + ".bias"),
               {}};
    for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
      const std::string prefix = "layers." + std::to_string(l) + ".";
      encoder.layers[l] = {master(prefix + "attention_norm.weight"),    master(prefix + "attention_norm.bias"),
                           master(prefix + "mlp_norm.weight"),          master(prefix + "mlp_norm.bias"),
                           compute(prefix + "attention.qkv.weight"),    compute(prefix + "attention.qkv.bias"),
                           compute(prefix + "attention.output.weight"), compute(prefix + "attention.output.bias"),
                           compute(prefix + "mlp.input.weight"),        compute(prefix + "mlp.input.bias"),
                           compute(prefix + "mlp.output.weight"),       compute(prefix + "mlp.output.bias")};
    }
    packed = std::make_unique<DeviceArray<char>>(cuda::packed_encoder_bytes(encoder));
    cuda::pack_encoder(device.context, encoder, packed->data());
  }

  /// The last row for the first `length` of some ids.
  bool matches_cpu(int64_t length, int64_t max_length) {
    if (!can_encode_sequence(config, max_length, kSharedBytes)) return false;
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < max_length; ++i) ids.push_back(static_cast<int32_t>((i * i + 7 * i + length) % 50));
    ThreadPool pool{1};
    Arena scratch, arena;
    limbeck::Context context{pool, scratch};
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(length)};
    ForwardInputs inputs;
    inputs.batch = {ids.data(), offsets.data(), nullptr, length, 1};
    inputs.hidden_states = {config.num_hidden_layers};
    const ForwardOutputs outputs = run_forward(context, arena, host, inputs);
    const float* last = outputs.hidden_states[0].data() + (length - 1) * config.hidden_size;
    const std::vector<double> expected(last, last + config.hidden_size);

    for (int64_t i = length; i < max_length; ++i) ids[static_cast<size_t>(i)] = -1000000000;  // never looked up
    const DeviceArray<int32_t> device_ids(ids), device_length(std::vector<int32_t>{static_cast<int32_t>(length)});
    DeviceArray<bf16> query(config.hidden_size);
    std::vector<int32_t> words(static_cast<size_t>(length * 8));
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<int32_t>(i * i);
    const DeviceArray<int32_t> device_words(words);
    DeviceArray<int32_t> copy(length * 8);
    encode_sequence(device.context, encoder, packed->data(), max_length, device_length.data(), device_ids.data(),
                    query.data(), {device_words.data(), copy.data(), static_cast<int>(words.size())},
                    {halves[0]->data(), halves[0]->count() * 2 - length});
    const bool result = is_close(query.floats(), expected, 1.5e-2) && copy.get() == words;
    if (!result) {
      std::printf("d %d, heads %d of %d, I %d, length %d of %d\n", encoder.hidden_size, encoder.num_heads,
                  encoder.head_dim, encoder.intermediate_size, static_cast<int>(length), static_cast<int>(max_length));
    }
    return result;
  }

  TestDevice device;
  TransformerConfig config;
  Transformer host;
  std::vector<std::unique_ptr<DeviceArray<float>>> floats;
  std::vector<std::unique_ptr<DeviceArray<bf16>>> halves;
  std::unique_ptr<DeviceArray<char>> packed;
  SequenceEncoder encoder{};
};

}  // namespace

TEST("cuda: encode_sequence equals the CPU's last hidden state for every length") {
  Student student_64(student(64, 2, 32, 256, 2));
  for (const int64_t length : {1, 2, 15, 16, 17, 32, 33, 48, 50, 63, 64}) CHECK(student_64.matches_cpu(length, 64));
  CHECK(student_64.matches_cpu(16, 16));
  CHECK(student_64.matches_cpu(5, 20));
  CHECK(student_64.matches_cpu(128, 128));
  CHECK(student_64.matches_cpu(65, 100));
}

TEST("cuda: encode_sequence of any widths, numbers of heads and layers") {
  for (const auto& config : {student(16, 1, 16, 16, 1), student(48, 3, 16, 80, 3), student(64, 1, 64, 128, 2),
                             student(128, 2, 64, 512, 2), student(112, 1, 128, 336, 1), student(32, 4, 32, 64, 2)}) {
    Student any(config);
    for (const int64_t length : {1, 20, 64}) CHECK(any.matches_cpu(length, 64));
  }
}

TEST("cuda: encode_sequence of long histories, wide and deep") {
  Student wide(student(128, 8, 16, 512, 2)), deep(student(128, 4, 32, 512, 6));
  for (const int64_t length : {1, 16, 81, 97, 128}) CHECK(wide.matches_cpu(length, 128));
  CHECK(deep.matches_cpu(64, 64));
  CHECK(deep.matches_cpu(90, 128));
}

TEST("cuda: encode_sequence with norms after, the exact GELU, and without biases") {
  TransformerConfig config = student(64, 4, 16, 96, 3);
  config.norm_placement = NormPlacement::kAfter;
  Student after(config);
  for (const int64_t length : {1, 16, 39, 64}) CHECK(after.matches_cpu(length, 64));
  config.hidden_act = Activation::kGeluErf;
  config.num_hidden_layers = 1;
  Student exact(config);
  for (const int64_t length : {3, 50}) CHECK(exact.matches_cpu(length, 64));
  config.norm_placement = NormPlacement::kBefore;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = false;
  Student bare(config);
  for (const int64_t length : {3, 50}) CHECK(bare.matches_cpu(length, 64));
}

TEST("cuda: what encode_sequence cannot take is left to the general passes") {
  const TransformerConfig good = student(64, 2, 32, 256, 2);
  CHECK(can_encode_sequence(good, 64, kSharedBytes));
  CHECK(!can_encode_sequence(good, 129, kSharedBytes));
  CHECK(!can_encode_sequence(good, 64, 48 * 1024));
  const auto cannot = [&](auto change) {
    TransformerConfig config = good;
    change(config);
    return !can_encode_sequence(config, 64, kSharedBytes);
  };
  CHECK(cannot([](TransformerConfig& c) { c.causal = false; }));
  CHECK(cannot([](TransformerConfig& c) { c.norm = NormKind::kRmsNorm; }));
  CHECK(cannot([](TransformerConfig& c) { c.positions = PositionKind::kRotary; }));
  CHECK(cannot([](TransformerConfig& c) { c.hidden_act = Activation::kSwiglu; }));
  CHECK(cannot([](TransformerConfig& c) { c.num_key_value_heads = 1; }));
  CHECK(cannot([](TransformerConfig& c) { c.head_dim = 24; }));
  CHECK(cannot([](TransformerConfig& c) { c.hidden_size = 144; }));
  CHECK(cannot([](TransformerConfig& c) { c.intermediate_size = 528; }));
  CHECK(cannot([](TransformerConfig& c) { c.num_hidden_layers = 7; }));
  CHECK(cannot([](TransformerConfig& c) { c.sliding_window = 63; }));
  CHECK(cannot([](TransformerConfig& c) { c.qk_norm = true; }));
  CHECK(cannot([](TransformerConfig& c) { c.position_offset = 2; }));
}
