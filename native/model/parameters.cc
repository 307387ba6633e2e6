#include "model/parameters.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace limbeck {

namespace {
constexpr int64_t kAlignmentFloats = 16;  // 64 bytes: one cache line, one AVX-512 register

template <typename T>
T read_value(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

float widen(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Exact for every value: 5 exponent bits (bias 15), 10 fraction bits; subnormals are fraction·2⁻²⁴.
float widen_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
  if (exponent == 0) return (sign != 0 ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + 127 - 15;
  return widen(sign | wide_exponent << 23 | fraction << 13);
}

float stored_value(StoredType type, const uint8_t* bytes) {
  switch (type) {
    case StoredType::kFloat32:
      return read_value<float>(bytes);
    case StoredType::kFloat16:
      return widen_float16(read_value<uint16_t>(bytes));
    case StoredType::kBFloat16:
      return widen(uint32_t{read_value<uint16_t>(bytes)} << 16);
    case StoredType::kFloat64:
      break;
  }
  return static_cast<float>(read_value<double>(bytes));
}

}  // namespace

int64_t stored_size_bytes(StoredType type) {
  if (type == StoredType::kFloat64) return 8;
  return type == StoredType::kFloat32 ? 4 : 2;
}

void ParameterLayout::add(const std::string& name, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  list.push_back({name, std::move(shape), flat_count, count});
  flat_count += (count + kAlignmentFloats - 1) / kAlignmentFloats * kAlignmentFloats;
}

std::vector<Parameter> list_parameters(const TransformerConfig& config, int64_t* flat_count) {
  ParameterLayout layout;
  auto add = [&](const std::string& name, std::vector<int64_t> shape) { layout.add(name, std::move(shape)); };
  const int64_t d = config.hidden_size;
  const bool layer_norm = config.norm == NormKind::kLayerNorm;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  auto add_norm = [&](const std::string& name) {
    add(name + ".weight", {d});
    if (layer_norm) add(name + ".bias", {d});
  };
  auto add_linear = [&](const std::string& name, int64_t out_features, int64_t in_features, bool bias) {
    add(name + ".weight", {out_features, in_features});
    if (bias) add(name + ".bias", {out_features});
  };

  add("embeddings.word", {config.vocab_size, d});
  if (config.positions == PositionKind::kLearned) add("embeddings.position", {config.position_rows(), d});
  if (config.type_vocab_size > 0) add("embeddings.token_type", {config.type_vocab_size, d});
  if (norm_after) add_norm("embeddings.norm");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    add_norm(prefix + "attention_norm");
    add_linear(prefix + "attention.qkv", config.qkv_size(), d, config.qkv_bias);
    if (config.qk_norm) {
      add(prefix + "attention.q_norm.weight", {config.head_dim});
      add(prefix + "attention.k_norm.weight", {config.head_dim});
    }
    add_linear(prefix + "attention.output", d, config.attention_size(), config.attention_output_bias);
    add_norm(prefix + "mlp_norm");
    add_linear(prefix + "mlp.input", config.mlp_input_size(), d, config.mlp_bias);
    add_linear(prefix + "mlp.output", d, config.intermediate_size, config.mlp_bias);
  }
  if (!norm_after) add_norm("final_norm");
  if (config.masked_lm_head) {
    add_linear("head.dense", d, d, true);
    add_norm("head.norm");
    add("head.bias", {config.vocab_size});
  }
  if (!config.tie_word_embeddings) add("head.output.weight", {config.vocab_size, d});
  if (config.item_feature_size > 0) add("item_projection.weight", {d, config.item_feature_size});
  *flat_count = layout.flat_count;
  return std::move(layout.list);
}

Parameters::Parameters(const TransformerConfig& config) : list_(list_parameters(config, &flat_count_)) {
  for (size_t i = 0; i < list_.size(); ++i) index_.emplace(list_[i].name, i);
  values_ = allocate_floats(flat_count_);
}

Parameters::Parameters(ParameterLayout layout) : flat_count_(layout.flat_count), list_(std::move(layout.list)) {
  for (size_t i = 0; i < list_.size(); ++i) {
    if (!index_.emplace(list_[i].name, i).second) {
      throw Error("ERR_INVALID_ARGUMENT", "There are two parameters named '" + list_[i].name + "'.");
    }
  }
  values_ = allocate_floats(flat_count_);
}

const Parameter& Parameters::find(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) throw Error("ERR_INVALID_ARGUMENT", "The model has no parameter named '" + name + "'.");
  return list_[found->second];
}

int64_t Parameters::num_parameters() const {
  int64_t total = 0;
  for (const Parameter& parameter : list_) total += parameter.count;
  return total;
}

int64_t Parameters::load(const Parameter& parameter, StoredType type, const uint8_t* bytes, int64_t first,
                         int64_t count, bool is_transposed) {
  if (first < 0 || count < 0 || count > parameter.count || first > parameter.count - count) {
    throw Error("ERR_INVALID_ARGUMENT", "Values " + std::to_string(first) + " to " + std::to_string(first + count) +
                                            " are outside the " + std::to_string(parameter.count) + " of '" +
                                            parameter.name + "'.");
  }
  if (is_transposed && parameter.shape.size() != 2) {
    throw Error("ERR_INVALID_ARGUMENT", "'" + parameter.name + "' is not a matrix, and cannot be transposed.");
  }
  float* out = values() + parameter.offset;
  const int64_t size_bytes = stored_size_bytes(type);
  // The file's rows are the parameter's columns.
  const int64_t stride = is_transposed ? parameter.shape[1] : 1;
  const int64_t row_length = is_transposed ? parameter.shape[0] : parameter.count;
  int64_t row = first / row_length, column = first % row_length, bad = -1;
  for (int64_t i = 0; i < count; ++i) {
    const float value = stored_value(type, bytes + i * size_bytes);
    if (bad < 0 && !std::isfinite(value)) bad = i;
    out[row + column * stride] = value;
    if (++column == row_length) {
      column = 0;
      ++row;
    }
  }
  return bad;
}

float* Parameters::gradients() {
  if (gradients_ == nullptr) gradients_ = allocate_floats(flat_count_);
  return gradients_.get();
}

}  // namespace limbeck
