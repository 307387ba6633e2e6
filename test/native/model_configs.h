#pragma once

#include <cstdint>

#include "model/config.h"

namespace limbeck {

/// Sizes of a small model; its heads divide hidden_size.
struct ModelSizes {
  int64_t vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, max_position_embeddings;
};

/// Learned positions, layer norms before the blocks, biases, one table.
inline TransformerConfig gpt2_config(const ModelSizes& sizes) {
  TransformerConfig config{};
  config.vocab_size = sizes.vocab_size;
  config.hidden_size = sizes.hidden_size;
  config.num_hidden_layers = sizes.num_hidden_layers;
  config.num_attention_heads = config.num_key_value_heads = sizes.num_attention_heads;
  config.head_dim = sizes.hidden_size / sizes.num_attention_heads;
  config.intermediate_size = sizes.intermediate_size;
  config.max_position_embeddings = sizes.max_position_embeddings;
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

/// Both directions, norms after the blocks, token types, a head of its own.
inline TransformerConfig bert_config(const ModelSizes& sizes) {
  TransformerConfig config = gpt2_config(sizes);
  config.norm_placement = NormPlacement::kAfter;
  config.causal = false;
  config.hidden_act = Activation::kGeluErf;
  config.type_vocab_size = 2;
  config.masked_lm_head = true;
  return config;
}

}  // namespace limbeck
