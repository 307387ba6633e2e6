#include "model/config.h"

#include <string>

#include "core/error.h"

namespace limbeck {

namespace {

// Generous, and small enough that no product of two of them overflows int64.
constexpr int64_t kMaxDimension = int64_t{1} << 28;
constexpr int64_t kMaxLayers = 1024;

void check_range(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max) {
    throw Error("ERR_INVALID_ARGUMENT", "Expected " + std::string(name) + " between " + std::to_string(min) + " and " +
                                            std::to_string(max) + ", got " + std::to_string(value) + ".");
  }
}

void check_probability(const char* name, float value) {
  if (!(value >= 0.0f && value < 1.0f)) {
    throw Error("ERR_INVALID_ARGUMENT",
                "Expected " + std::string(name) + " in [0, 1), got " + std::to_string(value) + ".");
  }
}

void check_rope_scaling(const RopeScaling& scaling, float theta) {
  if (scaling.type == RopeType::kDefault) return;
  check_range("ropeScaling.originalMaxPositionEmbeddings", scaling.original_max_position_embeddings, 1, kMaxDimension);
  const bool is_valid = scaling.factor >= 1 && scaling.attention_factor > 0 &&
                        scaling.high_freq_factor > scaling.low_freq_factor && scaling.low_freq_factor > 0 &&
                        scaling.beta_fast > scaling.beta_slow && scaling.beta_slow > 0;
  if (!is_valid) {
    throw Error("ERR_INVALID_ARGUMENT",
                "Expected ropeScaling with factor of at least 1, attentionFactor above 0, and lowFreqFactor below "
                "highFreqFactor and betaSlow below betaFast, all above 0.");
  }
  if (scaling.type == RopeType::kYarn && !(theta > 1.0f)) {
    throw Error("ERR_INVALID_ARGUMENT", "Yarn needs a ropeTheta above 1.");
  }
}

}  // namespace

void check_config(const TransformerConfig& config) {
  check_range("vocabSize", config.vocab_size, 1, kMaxDimension);
  check_range("hiddenSize", config.hidden_size, 1, 1 << 20);
  check_range("numHiddenLayers", config.num_hidden_layers, 1, kMaxLayers);
  check_range("numAttentionHeads", config.num_attention_heads, 1, 1 << 16);
  check_range("numKeyValueHeads", config.num_key_value_heads, 1, config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    throw Error("ERR_INVALID_ARGUMENT", "numAttentionHeads must be a multiple of numKeyValueHeads.");
  }
  check_range("headDim", config.head_dim, 1, 1 << 16);
  if (config.positions == PositionKind::kRotary && config.head_dim % 2 != 0) {
    throw Error("ERR_INVALID_ARGUMENT", "Rotary positions need an even headDim.");
  }
  check_range("intermediateSize", config.intermediate_size, 1, 1 << 24);
  check_range("maxPositionEmbeddings", config.max_position_embeddings, 1, kMaxDimension);
  check_range("positionOffset", config.position_offset, 0, kMaxDimension);
  check_range("slidingWindow", config.sliding_window, 0, kMaxDimension);
  check_range("maxWindowLayers", config.max_window_layers, 0, kMaxDimension);
  if (config.sliding_window > 0 && !config.causal) {
    throw Error("ERR_INVALID_ARGUMENT", "A slidingWindow needs causal attention.");
  }
  check_range("typeVocabSize", config.type_vocab_size, 0, 1 << 16);
  check_range("itemFeatureSize", config.item_feature_size, 0, 1 << 20);
  if (!(config.norm_eps > 0.0f)) throw Error("ERR_INVALID_ARGUMENT", "normEps must be greater than 0.");
  if (config.positions == PositionKind::kRotary && !(config.rope_theta > 0.0f)) {
    throw Error("ERR_INVALID_ARGUMENT", "ropeTheta must be greater than 0.");
  }
  check_rope_scaling(config.rope_scaling, config.rope_theta);
  if (config.masked_lm_head && config.hidden_act == Activation::kSwiglu) {
    throw Error("ERR_INVALID_ARGUMENT", "A masked-LM head needs an activation without a gate.");
  }
  if (config.item_feature_size > 0 && !config.tie_word_embeddings) {
    throw Error("ERR_INVALID_ARGUMENT", "Item features need tied embeddings: one table is input and output.");
  }
  check_probability("embeddingDropout", config.embedding_dropout);
  check_probability("attentionDropout", config.attention_dropout);
  check_probability("hiddenDropout", config.hidden_dropout);
}

}  // namespace limbeck
