// Forward and backward of the transformer.

#include "model/transformer.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "ops/activation.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace limbeck {

namespace {

// Streams of the dropout masks: one for the embeddings, three for each block.
constexpr uint64_t kEmbeddingStream = 0;
uint64_t attention_stream(int64_t layer) { return 1 + 3 * static_cast<uint64_t>(layer); }
uint64_t attention_output_stream(int64_t layer) { return 2 + 3 * static_cast<uint64_t>(layer); }
uint64_t mlp_output_stream(int64_t layer) { return 3 + 3 * static_cast<uint64_t>(layer); }

float* copy_rows(Arena& arena, const float* x, int64_t count) {
  float* copy = arena.allocate<float>(count);
  std::memcpy(copy, x, static_cast<size_t>(count) * sizeof(float));
  return copy;
}

float* zeros(Arena& arena, int64_t count) {
  float* data = arena.allocate<float>(count);
  std::memset(data, 0, static_cast<size_t>(count) * sizeof(float));
  return data;
}

/// The last columns of qkv [N, (H + 2KV)·hd], packed: [N, KV·hd].
float* copy_values(Arena& arena, const TransformerConfig& config, const float* qkv, int64_t num_rows) {
  const int64_t width = config.num_key_value_heads * config.head_dim, first = config.qkv_size() - width;
  float* values = arena.allocate<float>(num_rows * width);
  for (int64_t i = 0; i < num_rows; ++i) {
    std::memcpy(values + i * width, qkv + i * config.qkv_size() + first, static_cast<size_t>(width) * sizeof(float));
  }
  return values;
}

/// The same columns of d_qkv += d_values [N, KV·hd].
void add_to_values(const TransformerConfig& config, const float* d_values, float* d_qkv, int64_t num_rows) {
  const int64_t width = config.num_key_value_heads * config.head_dim, first = config.qkv_size() - width;
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t c = 0; c < width; ++c) d_qkv[i * config.qkv_size() + first + c] += d_values[i * width + c];
  }
}

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

}  // namespace

const float* Transformer::word_table(Context& context, Arena& arena) const {
  const float* word = value("embeddings.word");  // v [V, d]
  if (config_.item_feature_size == 0) return word;
  if (item_features_ == nullptr) invalid("This model has item features: call setItemFeatures() first.");
  const int64_t V = config_.vocab_size, d = config_.hidden_size, f = config_.item_feature_size;
  float* table = copy_rows(arena, word, V * d);  // [V, d]
  gemm(context, V, d, f, {item_features_.get(), f, 1}, {value("item_projection.weight"), 1, f}, nullptr, table, d,
       true);
  return table;
}

OutputTable Transformer::output_table(const float* word_table) const {
  const float* weight = config_.tie_word_embeddings ? word_table : value("head.output.weight");
  return {weight, value("head.bias")};
}

void Transformer::linear_columns(Context& context, const Linear& linear, const float* x, float* y, int64_t num_rows,
                                 int64_t in_features, int64_t first_column, int64_t num_columns, int64_t ldy,
                                 const Epilogue& epilogue, const AdapterDropout& dropout) const {
  constexpr int64_t kMinPackedRows = 4;  // see ops/gemm.h
  const float* bias = linear.bias == nullptr ? nullptr : linear.bias + first_column;
  const MatrixView rows{x, in_features, 1};
  Epilogue of_product = epilogue;
  if (!linear.adapted.empty()) of_product.activated = nullptr;  // y is not complete yet
  const bool reads_packed = is_packed() && linear.packed != nullptr && first_column % kPackedColumns == 0;
  if (reads_packed && (num_rows >= kMinPackedRows || packed_for_few_rows_)) {
    gemm_packed(context, num_rows, first_column, num_columns, rows, *linear.packed, bias, y, ldy, of_product);
  } else {
    gemm(context, num_rows, num_columns, in_features, rows,
         {linear.weight + first_column * in_features, 1, in_features}, bias, y, ldy, false, of_product);
  }
  for (const LowRank& adapted : linear.adapted) {
    const int64_t begin = std::max(first_column, adapted.first_row);
    const int64_t end = std::min(first_column + num_columns, adapted.first_row + adapted.num_rows);
    if (begin >= end) continue;
    LowRankShape shape = low_rank_shape(adapted, num_rows, in_features, ldy, dropout);
    shape.out_features = end - begin;
    low_rank_forward(context, shape, x, adapted.a, adapted.b + (begin - adapted.first_row) * shape.rank,
                     y + (begin - first_column));
  }
  if (!linear.adapted.empty() && epilogue.activated != nullptr) {
    activation_forward(context, y, epilogue.activated, num_rows);
  }
}

LowRankShape Transformer::low_rank_shape(const LowRank& adapted, int64_t num_rows, int64_t in_features, int64_t ldy,
                                         const AdapterDropout& dropout) const {
  const AdapterConfig& config = adapter_->config();
  const bool drops = dropout.seed >= 0;
  return {num_rows,
          in_features,
          adapted.num_rows,
          config.rank,
          ldy,
          config.scale,
          drops ? config.dropout : 0.0f,
          drops ? static_cast<uint64_t>(dropout.seed) : 0,
          adapted.dropout_stream,
          static_cast<uint64_t>(dropout.tokens_before * in_features)};
}

void Transformer::adapted_backward(Context& context, const Linear& linear, const float* x, const float* d_y, float* d_x,
                                   int64_t num_rows, int64_t in_features, int64_t out_features,
                                   const AdapterDropout& dropout) const {
  for (const LowRank& adapted : linear.adapted) {
    low_rank_backward(context, low_rank_shape(adapted, num_rows, in_features, out_features, dropout), x, adapted.a,
                      adapted.b, d_y + adapted.first_row, d_x, adapted.d_a, adapted.d_b);
  }
}

void Transformer::norm_forward(Context& context, const Norm& norm, const float* x, float* y, float* mean, float* rstd,
                               int64_t num_rows) const {
  const int64_t d = config_.hidden_size;
  if (config_.norm == NormKind::kLayerNorm) {
    layer_norm_forward(context, x, norm.weight, norm.bias, y, mean, rstd, num_rows, d, config_.norm_eps);
  } else {
    rms_norm_forward(context, x, norm.weight, y, rstd, num_rows, d, config_.norm_eps);
  }
}

void Transformer::norm_backward(Context& context, const Norm& norm, const float* x, const float* mean,
                                const float* rstd, const float* d_y, float* d_x, int64_t num_rows) const {
  const int64_t d = config_.hidden_size;
  if (config_.norm == NormKind::kLayerNorm) {
    layer_norm_backward(context, x, norm.weight, mean, rstd, d_y, d_x, norm.d_weight, norm.d_bias, num_rows, d);
  } else {
    rms_norm_backward(context, x, norm.weight, rstd, d_y, d_x, norm.d_weight, num_rows, d);
  }
}

void Transformer::activation_forward(Context& context, const float* x, float* y, int64_t num_rows) const {
  const int64_t I = config_.intermediate_size;
  switch (config_.hidden_act) {
    case Activation::kGeluTanh:
      return gelu_tanh_forward(context, x, y, num_rows * I);
    case Activation::kGeluErf:
      return gelu_erf_forward(context, x, y, num_rows * I);
    case Activation::kSwiglu:
      return swiglu_forward(context, x, y, num_rows, I);
  }
}

void Transformer::activation_backward(Context& context, const float* x, const float* d_y, float* d_x,
                                      int64_t num_rows) const {
  const int64_t I = config_.intermediate_size;
  switch (config_.hidden_act) {
    case Activation::kGeluTanh:
      return gelu_tanh_backward(context, x, d_y, d_x, num_rows * I);
    case Activation::kGeluErf:
      return gelu_erf_backward(context, x, d_y, d_x, num_rows * I);
    case Activation::kSwiglu:
      return swiglu_backward(context, x, d_y, d_x, num_rows, I);
  }
}

AttentionShape Transformer::attention_shape(const Batch& batch, int64_t layer) const {
  return {batch.num_sequences,
          batch.sequence_offsets,
          config_.num_attention_heads,
          config_.num_key_value_heads,
          config_.head_dim,
          config_.causal,
          config_.sliding_window_of(layer),
          config_.num_attention_heads * batch.squares_before};
}

void Transformer::turn_heads(Context& context, const Block& block, float* x, const int32_t* position_ids,
                             int64_t num_rows, int64_t row_stride, int64_t num_queries, int64_t num_keys,
                             float* query_rstd, float* key_rstd) const {
  const int64_t hd = config_.head_dim;
  if (config_.qk_norm) {
    float* keys = x + num_queries * hd;
    rms_norm_heads_forward(context, x, row_stride, block.query_norm.weight, x, row_stride, query_rstd, num_rows,
                           num_queries, hd, config_.norm_eps);
    rms_norm_heads_forward(context, keys, row_stride, block.key_norm.weight, keys, row_stride, key_rstd, num_rows,
                           num_keys, hd, config_.norm_eps);
  }
  if (config_.positions == PositionKind::kRotary) {
    rotary(context, x, position_ids, num_rows, row_stride, num_queries + num_keys, hd, rotary_frequencies_.data(),
           config_.rope_scaling.attention_factor, 1);
  }
}

void Transformer::turn_heads_backward(Context& context, const Activations& activations, const Block& block,
                                      const BlockActivations& a, float* d_qkv) const {
  const int64_t N = activations.batch.num_tokens, hd = config_.head_dim, stride = config_.qkv_size();
  const int64_t H = config_.num_attention_heads, KV = config_.num_key_value_heads;
  if (config_.positions == PositionKind::kRotary) {
    rotary(context, d_qkv, activations.position_ids, N, stride, H + KV, hd, rotary_frequencies_.data(),
           config_.rope_scaling.attention_factor, -1);
  }
  if (config_.qk_norm) {
    const int64_t raw_stride = (H + KV) * hd;
    rms_norm_heads_backward(context, a.raw_qk, raw_stride, block.query_norm.weight, a.query_rstd, d_qkv, stride,
                            block.query_norm.d_weight, N, H, hd);
    rms_norm_heads_backward(context, a.raw_qk + H * hd, raw_stride, block.key_norm.weight, a.key_rstd, d_qkv + H * hd,
                            stride, block.key_norm.d_weight, N, KV, hd);
  }
}

AttentionShape Transformer::relation_shape(const Batch& batch, int64_t num_heads) const {
  const int64_t width = config_.num_key_value_heads * config_.head_dim;
  if (num_heads < 1 || width % num_heads != 0) {
    invalid("Expected relationHeads to divide the " + std::to_string(width) + " columns of the values, got " +
            std::to_string(num_heads) + ".");
  }
  return {batch.num_sequences, batch.sequence_offsets, num_heads, num_heads, width / num_heads, config_.causal};
}

void Transformer::drop(Context& context, const Activations& activations, float* x, float probability,
                       uint64_t dropout_stream) const {
  if (activations.dropout_seed < 0) return;
  const int64_t d = config_.hidden_size;
  dropout(context, x, activations.batch.num_tokens * d, probability, static_cast<uint64_t>(activations.dropout_seed),
          dropout_stream, static_cast<uint64_t>(activations.batch.tokens_before * d));
}

// Without a backward pass, GELU may take the place of its input.
BlockActivations Transformer::allocate_block(Arena& arena, int64_t N, bool for_backward) const {
  const int64_t d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  BlockActivations block{};
  block.attention_normed = norm_after ? nullptr : arena.allocate<float>(N * d);
  block.attention_mean = arena.allocate<float>(N);
  block.attention_rstd = arena.allocate<float>(N);
  block.qkv = arena.allocate<float>(N * config_.qkv_size());
  if (config_.qk_norm) {
    const int64_t raw_size = (config_.num_attention_heads + config_.num_key_value_heads) * config_.head_dim;
    block.raw_qk = for_backward ? arena.allocate<float>(N * raw_size) : nullptr;
    block.query_rstd = arena.allocate<float>(N * config_.num_attention_heads);
    block.key_rstd = arena.allocate<float>(N * config_.num_key_value_heads);
  }
  block.lse = for_backward ? arena.allocate<float>(N * config_.num_attention_heads) : nullptr;
  block.attended = arena.allocate<float>(N * config_.attention_size());
  block.residual = arena.allocate<float>(N * d);
  block.mlp_normed = arena.allocate<float>(N * d);
  block.mlp_mean = arena.allocate<float>(N);
  block.mlp_rstd = arena.allocate<float>(N);
  block.mlp_input = arena.allocate<float>(N * config_.mlp_input_size());
  const bool is_in_place = !for_backward && config_.hidden_act != Activation::kSwiglu;
  block.mlp_activated = is_in_place ? block.mlp_input : arena.allocate<float>(N * config_.intermediate_size);
  block.output_sum = norm_after ? arena.allocate<float>(N * d) : nullptr;
  return block;
}

Activations Transformer::forward(Context& context, Arena& arena, const Batch& batch,
                                 const ForwardOptions& options) const {
  const int64_t N = batch.num_tokens, d = config_.hidden_size, L = config_.num_hidden_layers;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  Activations activations{};
  activations.batch = batch;
  activations.dropout_seed = options.dropout_seed;
  activations.recomputes_blocks = options.for_backward && options.recomputes_blocks;
  activations.position_ids = arena.allocate<int32_t>(N);
  fill_position_ids(config_, batch, activations.position_ids);
  activations.hidden = arena.allocate<float*>(L + 1);
  for (int64_t l = 0; l <= L; ++l) {
    float* buffer = options.hidden_buffers == nullptr ? nullptr : options.hidden_buffers[l];
    activations.hidden[l] = buffer != nullptr ? buffer : arena.allocate<float>(N * d);
  }

  activations.word_table = batch.input_vectors == nullptr ? word_table(context, arena) : nullptr;
  activations.embedded = norm_after ? arena.allocate<float>(N * d) : activations.hidden[0];
  float* embedded = activations.embedded;
  if (batch.input_vectors == nullptr) {
    embedding_forward(context, batch.input_ids, activations.word_table, embedded, N, d, config_.vocab_size);
  } else {
    std::memcpy(embedded, batch.input_vectors, static_cast<size_t>(N * d) * sizeof(float));
  }
  if (config_.positions == PositionKind::kLearned) {
    embedding_add_forward(context, activations.position_ids, value("embeddings.position"), embedded, N, d,
                          config_.position_rows());
  }
  if (config_.type_vocab_size > 0) {
    const int32_t* types = batch.token_type_ids;
    if (types == nullptr) {
      int32_t* zero_types = arena.allocate<int32_t>(N);
      std::memset(zero_types, 0, static_cast<size_t>(N) * sizeof(int32_t));
      activations.batch.token_type_ids = types = zero_types;
    }
    embedding_add_forward(context, types, value("embeddings.token_type"), embedded, N, d, config_.type_vocab_size);
  }
  if (norm_after) {
    activations.embedded_mean = arena.allocate<float>(N);
    activations.embedded_rstd = arena.allocate<float>(N);
    norm_forward(context, embedding_norm_, embedded, activations.hidden[0], activations.embedded_mean,
                 activations.embedded_rstd, N);
  }
  drop(context, activations, activations.hidden[0], config_.embedding_dropout, kEmbeddingStream);

  // For inference, and where blocks are computed again, one block's buffers serve all blocks; the hidden states are
  // kept in any case.
  const bool keeps_blocks = options.for_backward && !options.recomputes_blocks;
  activations.blocks = arena.allocate<BlockActivations>(L);
  float* final_input = norm_after ? activations.hidden[L] : arena.allocate<float>(N * d);
  for (int64_t l = 0; l < L; ++l) {
    activations.blocks[l] =
        keeps_blocks || l == 0 ? allocate_block(arena, N, options.for_backward) : activations.blocks[0];
    BlockActivations& block = activations.blocks[l];
    block.input = activations.hidden[l];
    block.output = l + 1 == L ? final_input : activations.hidden[l + 1];
    if (options.last_rows_only && l + 1 == L) {
      last_block_forward(context, arena, activations, block);
      continue;
    }
    const bool keep_maps = options.keep_maps != nullptr && options.keep_maps[l] != 0;
    block.maps = keep_maps ? arena.allocate<float>(attention_map_floats(attention_shape(batch))) : nullptr;
    block_forward(context, activations, l, block);
    const bool keep_values = options.keep_values != nullptr && options.keep_values[l] != 0;
    block.values = keep_values ? copy_values(arena, config_, block.qkv, N) : nullptr;
  }
  activations.final_input = final_input;
  if (!norm_after) {
    activations.final_mean = arena.allocate<float>(N);
    activations.final_rstd = arena.allocate<float>(N);
    norm_forward(context, final_norm_, final_input, activations.hidden[L], activations.final_mean,
                 activations.final_rstd, options.last_rows_only ? batch.num_sequences : N);
  }
  return activations;
}

void Transformer::block_forward(Context& context, const Activations& activations, int64_t layer,
                                BlockActivations& a) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const Batch& batch = activations.batch;
  const int64_t N = batch.num_tokens, d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  const bool drops = activations.dropout_seed >= 0;
  const uint64_t seed = drops ? static_cast<uint64_t>(activations.dropout_seed) : 0;

  const float* attention_input = a.input;
  if (!norm_after) {
    norm_forward(context, block.attention_norm, a.input, a.attention_normed, a.attention_mean, a.attention_rstd, N);
    attention_input = a.attention_normed;
  }
  linear_columns(context, block.qkv, attention_input, a.qkv, N, d, 0, config_.qkv_size(), config_.qkv_size(), {},
                 activations.adapter_dropout());
  if (a.raw_qk != nullptr) {
    const int64_t size = (config_.num_attention_heads + config_.num_key_value_heads) * config_.head_dim;
    for (int64_t i = 0; i < N; ++i) {
      std::memcpy(a.raw_qk + i * size, a.qkv + i * config_.qkv_size(), static_cast<size_t>(size) * sizeof(float));
    }
  }
  turn_heads(context, block, a.qkv, activations.position_ids, N, config_.qkv_size(), config_.num_attention_heads,
             config_.num_key_value_heads, a.query_rstd, a.key_rstd);
  attention_forward(context, attention_shape(batch, layer), a.qkv, a.attended, a.lse, a.maps,
                    drops ? config_.attention_dropout : 0.0f, seed, attention_stream(layer));
  add_branch(context, activations, block.attention_output, a.attended, config_.attention_size(), a.input, a.residual, N,
             attention_output_stream(layer));
  feed_forward(context, activations, layer, a, N);
}

/// sum [N, d] = stream [N, d] + dropout(x [N, in_features]·Wᵀ + b)
void Transformer::add_branch(Context& context, const Activations& activations, const Linear& linear, const float* x,
                             int64_t in_features, const float* stream, float* sum, int64_t N,
                             uint64_t dropout_stream) const {
  const int64_t d = config_.hidden_size;
  const bool drops = activations.dropout_seed >= 0 && config_.hidden_dropout > 0;
  linear_columns(context, linear, x, sum, N, in_features, 0, d, d, {drops ? nullptr : stream},
                 activations.adapter_dropout());
  if (!drops) return;
  drop(context, activations, sum, config_.hidden_dropout, dropout_stream);
  add_in_place(context, stream, sum, N * d);
}

void Transformer::feed_forward(Context& context, const Activations& activations, int64_t layer, BlockActivations& a,
                               int64_t N) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const int64_t d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  if (norm_after) {
    norm_forward(context, block.attention_norm, a.residual, a.mlp_normed, a.attention_mean, a.attention_rstd, N);
  } else {
    norm_forward(context, block.mlp_norm, a.residual, a.mlp_normed, a.mlp_mean, a.mlp_rstd, N);
  }
  linear_columns(context, block.mlp_input, a.mlp_normed, a.mlp_input, N, d, 0, config_.mlp_input_size(),
                 config_.mlp_input_size(), {nullptr, a.mlp_activated, config_.hidden_act},
                 activations.adapter_dropout());
  float* sum = norm_after ? a.output_sum : a.output;
  if (sum == nullptr) return;
  add_branch(context, activations, block.mlp_output, a.mlp_activated, config_.intermediate_size,
             norm_after ? a.mlp_normed : a.residual, sum, N, mlp_output_stream(layer));
  if (norm_after) norm_forward(context, block.mlp_norm, sum, a.output, a.mlp_mean, a.mlp_rstd, N);
}

// The last row of each sequence alone, in the first S rows of the block's buffers; it attends to all rows.
void Transformer::last_block_forward(Context& context, Arena& arena, const Activations& activations,
                                     BlockActivations& a) const {
  const int64_t layer = config_.num_hidden_layers - 1;
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const Batch& batch = activations.batch;
  const int64_t N = batch.num_tokens, S = batch.num_sequences, d = config_.hidden_size;

  const float* attention_input = a.input;
  if (config_.norm_placement == NormPlacement::kBefore) {
    norm_forward(context, block.attention_norm, a.input, a.attention_normed, a.attention_mean, a.attention_rstd, N);
    attention_input = a.attention_normed;
  }
  float* last_input = arena.allocate<float>(S * d);   // [S, d] the stream
  float* last_normed = arena.allocate<float>(S * d);  // [S, d] what queries are made of
  for (int64_t s = 0; s < S; ++s) {
    const int64_t row = int64_t{batch.sequence_offsets[s + 1]} - 1;
    std::memcpy(last_input + s * d, a.input + row * d, static_cast<size_t>(d) * sizeof(float));
    std::memcpy(last_normed + s * d, attention_input + row * d, static_cast<size_t>(d) * sizeof(float));
  }
  a.input = last_input;
  if (is_packed() && packed_for_few_rows_ && folded_ != nullptr && activations.dropout_seed < 0) {
    folded_last_attention(context, arena, activations, attention_input, last_normed, a);
  } else {
    last_attention(context, arena, activations, attention_input, last_normed, a);
  }
  feed_forward(context, activations, layer, a, S);
}

/// residual = input + attention output, [S, d].   attention_input [N, d], last_normed [S, d] its last rows
void Transformer::last_attention(Context& context, Arena& arena, const Activations& activations,
                                 const float* attention_input, const float* last_normed, BlockActivations& a) const {
  const int64_t layer = config_.num_hidden_layers - 1;
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const Batch& batch = activations.batch;
  const int64_t N = batch.num_tokens, S = batch.num_sequences, d = config_.hidden_size;
  const int64_t H = config_.num_attention_heads, KV = config_.num_key_value_heads, hd = config_.head_dim;
  const int64_t queries = H * hd;  // columns
  // Keys and values, behind such columns of the queries as packed weights cannot be read without.
  const int64_t skipped = queries / kPackedColumns * kPackedColumns, columns = config_.qkv_size() - skipped;

  float* last_queries = arena.allocate<float>(S * queries);  // [S, H·hd]
  int32_t* last_positions = arena.allocate<int32_t>(S);      // [S]
  for (int64_t s = 0; s < S; ++s) last_positions[s] = activations.position_ids[batch.sequence_offsets[s + 1] - 1];
  linear_columns(context, block.qkv, attention_input, a.qkv, N, d, skipped, columns, columns);  // [N, columns]
  linear_columns(context, block.qkv, last_normed, last_queries, S, d, 0, queries, queries);
  float* keys = a.qkv + (queries - skipped);
  turn_heads(context, block, keys, activations.position_ids, N, columns, 0, KV, nullptr, a.key_rstd);
  turn_heads(context, block, last_queries, last_positions, S, queries, H, 0, a.query_rstd, nullptr);
  const AttentionShape shape = attention_shape(batch, layer);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t first = batch.sequence_offsets[s], length = batch.sequence_offsets[s + 1] - first;
    const float* own_keys = keys + first * columns;
    attend_row(context, shape, last_queries + s * queries, own_keys, own_keys + KV * hd, columns, length,
               a.attended + s * queries);
  }
  add_branch(context, activations, block.attention_output, a.attended, queries, a.input, a.residual, S,
             attention_output_stream(layer));
}

/// The same with folded weights.
void Transformer::folded_last_attention(Context& context, Arena& arena, const Activations& activations,
                                        const float* attention_input, const float* last_normed,
                                        BlockActivations& a) const {
  const int64_t layer = config_.num_hidden_layers - 1;
  const Batch& batch = activations.batch;
  const int64_t S = batch.num_sequences, d = config_.hidden_size, width = config_.num_attention_heads * d;
  float* queries = arena.allocate<float>(S * width);   // [S, H·d]
  float* attended = arena.allocate<float>(S * width);  // [S, H·d]
  linear_columns(context, folded_->queries, last_normed, queries, S, d, 0, width, width);
  AttentionShape shape = attention_shape(batch, layer);
  shape.num_key_value_heads = 1;
  shape.head_dim = d;
  for (int64_t s = 0; s < S; ++s) {
    const int64_t first = batch.sequence_offsets[s], length = batch.sequence_offsets[s + 1] - first;
    const float* rows = attention_input + first * d;
    attend_row(context, shape, queries + s * width, rows, rows, d, length, attended + s * width);
  }
  add_branch(context, activations, folded_->output, attended, width, a.input, a.residual, S,
             attention_output_stream(layer));
}

void Transformer::backward(Context& context, Arena& arena, const Activations& activations,
                           const BackwardInputs& inputs) {
  trainable().gradients();
  if (!bound_with_gradients_) bind();
  const Batch& batch = activations.batch;
  const int64_t N = batch.num_tokens, d = config_.hidden_size, L = config_.num_hidden_layers;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  const Arena::Scope scope(arena);

  float* d_stream = inputs.d_final;  // [N, d] gradient of what the block in hand gave out
  if (!norm_after) {
    d_stream = zeros(arena, N * d);
    norm_backward(context, final_norm_, activations.final_input, activations.final_mean, activations.final_rstd,
                  inputs.d_final, d_stream, N);
  }
  for (int64_t l = L - 1; l >= 0; --l) {
    const Arena::Scope block_scope(arena);
    if (activations.recomputes_blocks && l + 1 < L) {
      // The buffers hold the block after this one. Its output is there, and its maps were only read by the loss.
      BlockActivations block = activations.blocks[l];
      block.maps = nullptr;
      if (!norm_after) block.output = nullptr;
      block_forward(context, activations, l, block);
    }
    block_backward(context, arena, activations, l, d_stream,
                   inputs.teacher_maps != nullptr ? inputs.teacher_maps[l] : nullptr, inputs.map_loss_scale,
                   inputs.d_values != nullptr ? inputs.d_values[l] : nullptr);
    if (inputs.d_hidden != nullptr && inputs.d_hidden[l] != nullptr) {
      add_in_place(context, inputs.d_hidden[l], d_stream, N * d);
    }
  }
  drop(context, activations, d_stream, config_.embedding_dropout, kEmbeddingStream);
  if (adapter_ != nullptr) return;  // the embeddings are frozen
  if (norm_after) {
    float* d_embedded = zeros(arena, N * d);
    norm_backward(context, embedding_norm_, activations.embedded, activations.embedded_mean, activations.embedded_rstd,
                  d_stream, d_embedded, N);
    d_stream = d_embedded;
  }
  float* gradients = parameters_.gradients();
  embedding_backward(context, batch.input_ids, d_stream, inputs.d_word_table, N, d, config_.vocab_size);
  if (config_.positions == PositionKind::kLearned) {
    embedding_backward(context, activations.position_ids, d_stream,
                       gradients + parameters_.find("embeddings.position").offset, N, d, config_.position_rows());
  }
  if (config_.type_vocab_size > 0) {
    embedding_backward(context, batch.token_type_ids, d_stream,
                       gradients + parameters_.find("embeddings.token_type").offset, N, d, config_.type_vocab_size);
  }
}

// d_stream [N, d]: in, the gradient of the block's output; out, of its input.
void Transformer::block_backward(Context& context, Arena& arena, const Activations& activations, int64_t layer,
                                 float* d_stream, const float* teacher_maps, float map_loss_scale,
                                 const float* d_values) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const BlockActivations& a = activations.blocks[layer];
  const Batch& batch = activations.batch;
  const int64_t N = batch.num_tokens, d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  const bool drops = activations.dropout_seed >= 0;
  const uint64_t seed = drops ? static_cast<uint64_t>(activations.dropout_seed) : 0;

  // Feed-forward.
  if (norm_after) {
    float* d_sum = zeros(arena, N * d);
    norm_backward(context, block.mlp_norm, a.output_sum, a.mlp_mean, a.mlp_rstd, d_stream, d_sum, N);
    std::memcpy(d_stream, d_sum, static_cast<size_t>(N * d) * sizeof(float));
  }
  float* d_branch = copy_rows(arena, d_stream, N * d);
  drop(context, activations, d_branch, config_.hidden_dropout, mlp_output_stream(layer));
  float* d_activated = arena.allocate<float>(N * config_.intermediate_size);
  linear_backward(context, a.mlp_activated, block.mlp_output.weight, d_branch, d_activated, block.mlp_output.d_weight,
                  block.mlp_output.d_bias, N, config_.intermediate_size, d);
  adapted_backward(context, block.mlp_output, a.mlp_activated, d_branch, d_activated, N, config_.intermediate_size, d,
                   activations.adapter_dropout());
  float* d_mlp_input = arena.allocate<float>(N * config_.mlp_input_size());
  activation_backward(context, a.mlp_input, d_activated, d_mlp_input, N);
  float* d_normed = d_branch;  // its content is spent
  linear_backward(context, a.mlp_normed, block.mlp_input.weight, d_mlp_input, d_normed, block.mlp_input.d_weight,
                  block.mlp_input.d_bias, N, d, config_.mlp_input_size());
  adapted_backward(context, block.mlp_input, a.mlp_normed, d_mlp_input, d_normed, N, d, config_.mlp_input_size(),
                   activations.adapter_dropout());
  if (norm_after) {
    add_in_place(context, d_stream, d_normed, N * d);
    std::memset(d_stream, 0, static_cast<size_t>(N * d) * sizeof(float));
    norm_backward(context, block.attention_norm, a.residual, a.attention_mean, a.attention_rstd, d_normed, d_stream, N);
  } else {
    norm_backward(context, block.mlp_norm, a.residual, a.mlp_mean, a.mlp_rstd, d_normed, d_stream, N);
  }

  // Attention; d_stream is now the gradient of input + attention output.
  std::memcpy(d_branch, d_stream, static_cast<size_t>(N * d) * sizeof(float));
  drop(context, activations, d_branch, config_.hidden_dropout, attention_output_stream(layer));
  float* d_attended = arena.allocate<float>(N * config_.attention_size());
  linear_backward(context, a.attended, block.attention_output.weight, d_branch, d_attended,
                  block.attention_output.d_weight, block.attention_output.d_bias, N, config_.attention_size(), d);
  adapted_backward(context, block.attention_output, a.attended, d_branch, d_attended, N, config_.attention_size(), d,
                   activations.adapter_dropout());
  float* d_qkv = arena.allocate<float>(N * config_.qkv_size());
  attention_backward(context, attention_shape(batch, layer), a.qkv, a.attended, a.lse, d_attended, d_qkv, teacher_maps,
                     map_loss_scale, drops ? config_.attention_dropout : 0.0f, seed, attention_stream(layer));
  turn_heads_backward(context, activations, block, a, d_qkv);
  if (d_values != nullptr) add_to_values(config_, d_values, d_qkv, N);
  const float* attention_input = norm_after ? a.input : a.attention_normed;
  linear_backward(context, attention_input, block.qkv.weight, d_qkv, d_normed, block.qkv.d_weight, nullptr, N, d,
                  config_.qkv_size());
  adapted_backward(context, block.qkv, attention_input, d_qkv, d_normed, N, d, config_.qkv_size(),
                   activations.adapter_dropout());
  if (block.qkv.d_bias != nullptr) qkv_bias_backward(context, d_qkv, block.qkv.d_bias, N);
  if (norm_after) {
    add_in_place(context, d_normed, d_stream, N * d);
  } else {
    norm_backward(context, block.attention_norm, a.input, a.attention_mean, a.attention_rstd, d_normed, d_stream, N);
  }
}

void Transformer::qkv_bias_backward(Context& context, const float* d_qkv, float* d_bias, int64_t num_rows) const {
  const int64_t size = config_.qkv_size();
  if (config_.positions == PositionKind::kRotary || config_.qk_norm)
    return add_row_sums(context, d_qkv, size, num_rows, size, d_bias);
  // A key bias adds the same to all scores of a query, which the softmax cancels: its gradient is exactly zero. Summed
  // in floating point it would be noise, which AdamW would scale up to whole steps.
  const int64_t keys = config_.attention_size();
  const int64_t values = keys + config_.num_key_value_heads * config_.head_dim;
  add_row_sums(context, d_qkv, size, num_rows, keys, d_bias);
  add_row_sums(context, d_qkv + values, size, num_rows, size - values, d_bias + values);
}

void Transformer::backward_word_table(Context& context, const float* d_word_table) {
  if (adapter_ != nullptr) return;
  float* gradients = parameters_.gradients();
  const int64_t V = config_.vocab_size, d = config_.hidden_size, f = config_.item_feature_size;
  float* d_word = gradients + parameters_.find("embeddings.word").offset;
  if (d_word != d_word_table) add_in_place(context, d_word_table, d_word, V * d);
  if (f > 0) {
    gemm(context, d, f, V, {d_word_table, 1, d}, {item_features_.get(), f, 1}, nullptr,
         gradients + parameters_.find("item_projection.weight").offset, f, true);
  }
}

HeadActivations Transformer::head_forward(Context& context, Arena& arena, const float* hidden, int64_t num_rows) const {
  HeadActivations a{};
  a.input = a.output = hidden;
  if (!config_.masked_lm_head) return a;
  const int64_t d = config_.hidden_size;
  a.dense = arena.allocate<float>(num_rows * d);
  a.activated = arena.allocate<float>(num_rows * d);
  a.mean = arena.allocate<float>(num_rows);
  a.rstd = arena.allocate<float>(num_rows);
  float* output = arena.allocate<float>(num_rows * d);
  linear_forward(context, hidden, head_dense_.weight, head_dense_.bias, a.dense, num_rows, d, d);
  if (config_.hidden_act == Activation::kGeluTanh) {
    gelu_tanh_forward(context, a.dense, a.activated, num_rows * d);
  } else {
    gelu_erf_forward(context, a.dense, a.activated, num_rows * d);
  }
  norm_forward(context, head_norm_, a.activated, output, a.mean, a.rstd, num_rows);
  a.output = output;
  return a;
}

void Transformer::head_backward(Context& context, Arena& arena, const HeadActivations& a, float* d_output,
                                float* d_input, int64_t num_rows) {
  const int64_t d = config_.hidden_size;
  if (!config_.masked_lm_head) {
    if (d_input != d_output) std::memcpy(d_input, d_output, static_cast<size_t>(num_rows * d) * sizeof(float));
    return;
  }
  trainable().gradients();
  if (!bound_with_gradients_) bind();
  const Arena::Scope scope(arena);
  float* d_activated = zeros(arena, num_rows * d);
  norm_backward(context, head_norm_, a.activated, a.mean, a.rstd, d_output, d_activated, num_rows);
  if (config_.hidden_act == Activation::kGeluTanh) {
    gelu_tanh_backward(context, a.dense, d_activated, d_activated, num_rows * d);
  } else {
    gelu_erf_backward(context, a.dense, d_activated, d_activated, num_rows * d);
  }
  linear_backward(context, a.input, head_dense_.weight, d_activated, d_input, head_dense_.d_weight, head_dense_.d_bias,
                  num_rows, d, d);
}

}  // namespace limbeck
