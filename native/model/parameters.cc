#include "model/parameters.h"

#include <utility>

#include "core/error.h"

namespace limbeck {

namespace {
constexpr int64_t kAlignmentFloats = 16;  // 64 bytes: one cache line, one AVX-512 register
}

Parameters::Parameters(const TransformerConfig& config) {
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
  if (config.positions == PositionKind::kLearned) add("embeddings.position", {config.max_position_embeddings, d});
  if (config.type_vocab_size > 0) add("embeddings.token_type", {config.type_vocab_size, d});
  if (norm_after) add_norm("embeddings.norm");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    add_norm(prefix + "attention_norm");
    add_linear(prefix + "attention.qkv", config.qkv_size(), d, config.qkv_bias);
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
  values_ = allocate_floats(flat_count_);
}

void Parameters::add(const std::string& name, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  index_.emplace(name, list_.size());
  list_.push_back({name, std::move(shape), flat_count_, count});
  flat_count_ += (count + kAlignmentFloats - 1) / kAlignmentFloats * kAlignmentFloats;
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

float* Parameters::gradients() {
  if (gradients_ == nullptr) gradients_ = allocate_floats(flat_count_);
  return gradients_.get();
}

}  // namespace limbeck
