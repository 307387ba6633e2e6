#pragma once

#include <cstdint>

#include "model/rope.h"
#include "ops/activation.h"

namespace limbeck {

enum class NormKind { kLayerNorm, kRmsNorm };
enum class NormPlacement { kBefore, kAfter };
enum class PositionKind { kLearned, kRotary };

/// One transformer for GPT-2, BERT and RoBERTa, Llama, Qwen and Mistral, and the sequence student; the words of Hugging
/// Face configurations.
struct TransformerConfig {
  int64_t vocab_size;
  int64_t hidden_size;
  int64_t num_hidden_layers;
  int64_t num_attention_heads;
  int64_t num_key_value_heads;
  int64_t head_dim;
  int64_t intermediate_size;
  int64_t max_position_embeddings;
  int64_t type_vocab_size;  // 0 = no token types
  NormKind norm;
  NormPlacement norm_placement;
  float norm_eps;
  PositionKind positions;
  float rope_theta;
  bool causal;
  Activation hidden_act;
  bool qkv_bias;
  bool attention_output_bias;
  bool mlp_bias;
  bool tie_word_embeddings;
  bool masked_lm_head;
  int64_t item_feature_size;  // f; 0 = plain table. Item vector e_i = v_i + A·u_i
  float embedding_dropout;
  float attention_dropout;
  float hidden_dropout;
  int64_t position_offset;    // rows of the position table before position 0: RoBERTa's padding_idx + 1
  int64_t sliding_window;     // a token sees itself and the window − 1 tokens before it; 0 = all
  int64_t max_window_layers;  // the first blocks, which see all all the same
  bool qk_norm;               // RMS norms over each head of queries and keys
  RopeScaling rope_scaling;

  int64_t qkv_size() const { return (num_attention_heads + 2 * num_key_value_heads) * head_dim; }
  int64_t attention_size() const { return num_attention_heads * head_dim; }
  /// Rows of the table of learned positions.
  int64_t position_rows() const { return max_position_embeddings + position_offset; }
  int64_t sliding_window_of(int64_t layer) const { return layer < max_window_layers ? 0 : sliding_window; }
  /// Columns of the first feed-forward product: SwiGLU computes gate and up at once.
  int64_t mlp_input_size() const {
    return hidden_act == Activation::kSwiglu ? 2 * intermediate_size : intermediate_size;
  }
};

/// Throws Error("ERR_INVALID_ARGUMENT") naming the first field that memory safety forbids.
void check_config(const TransformerConfig& config);

}  // namespace limbeck
