// Forward and backward of the transformer of model.h.

#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/model.h"
#include "cuda/norm.h"

namespace limbeck::cuda {

namespace {

// Streams of the dropout masks, as in model/transformer.cc: one for the embeddings, three for each block.
constexpr uint64_t kEmbeddingStream = 0;
uint64_t attention_stream(int64_t layer) { return 1 + 3 * static_cast<uint64_t>(layer); }
uint64_t attention_output_stream(int64_t layer) { return 2 + 3 * static_cast<uint64_t>(layer); }
uint64_t mlp_output_stream(int64_t layer) { return 3 + 3 * static_cast<uint64_t>(layer); }

bool is_set(const std::vector<bool>& flags, int64_t index) {
  return !flags.empty() && flags[static_cast<size_t>(index)];
}

template <typename P>
P entry(const std::vector<P>& pointers, int64_t index) {
  return pointers.empty() ? nullptr : pointers[static_cast<size_t>(index)];
}

}  // namespace

template <typename T>
AttentionShape Transformer<T>::attention_shape(const DeviceBatch& batch, int64_t layer) const {
  return {batch.num_tokens,
          batch.num_sequences,
          batch.max_length,
          batch.sequence_offsets,
          batch.map_offsets,
          config.num_attention_heads,
          config.num_key_value_heads,
          config.head_dim,
          config.causal,
          config.sliding_window_of(layer)};
}

template <typename T>
AttentionShape Transformer<T>::relation_shape(const DeviceBatch& batch, int64_t num_heads) const {
  const int64_t width = config.num_key_value_heads * config.head_dim;
  return {batch.num_tokens, batch.num_sequences, batch.max_length,  batch.sequence_offsets, batch.map_offsets,
          num_heads,        num_heads,           width / num_heads, config.causal,          0};
}

template <typename T>
void Transformer<T>::norm_forward(Context& context, const Norm& norm, const T* x, T* y, float* mean, float* rstd,
                                  int64_t num_rows) const {
  const int64_t d = config.hidden_size;
  if (config.norm == NormKind::kLayerNorm) {
    layer_norm_forward<T>(context, x, norm.weight, norm.bias, y, mean, rstd, num_rows, d, config.norm_eps);
  } else {
    rms_norm_forward<T>(context, x, norm.weight, y, rstd, num_rows, d, config.norm_eps);
  }
}

template <typename T>
void Transformer<T>::norm_backward(Context& context, const Norm& norm, const T* x, const float* mean, const float* rstd,
                                   const T* d_y, T* d_x, int64_t num_rows, bool accumulate, float* d_x_sums,
                                   PendingSums* pending) const {
  const int64_t d = config.hidden_size;
  if (config.norm == NormKind::kLayerNorm) {
    layer_norm_backward<T>(context, x, norm.weight, mean, rstd, d_y, d_x, norm.d_weight, norm.d_bias, num_rows, d,
                           accumulate, d_x_sums, pending);
  } else {
    rms_norm_backward<T>(context, x, norm.weight, rstd, d_y, d_x, norm.d_weight, num_rows, d, accumulate, d_x_sums,
                         pending);
  }
}

template <typename T>
void Transformer<T>::drop(Context& context, const Activations<T>& activations, T* x, float probability,
                          uint64_t dropout_stream) const {
  if (activations.dropout_seed == nullptr) return;
  const DeviceBatch& batch = *activations.batch;
  const int64_t d = config.hidden_size;
  dropout<T>(context, x, batch.num_tokens * d, probability, activations.dropout_seed, dropout_stream,
             batch.tokens_before * d);
}

template <typename T>
AttentionDropout Transformer<T>::dropout_of_attention(const Activations<T>& activations, int64_t layer) const {
  if (activations.dropout_seed == nullptr) return {};
  return {config.attention_dropout, activations.dropout_seed, attention_stream(layer),
          config.num_attention_heads * activations.batch->squares_before};
}

// Without a backward pass, GELU and sums take the place of what they are made of; `residual` is set by who knows where
// the residual stream goes on.
template <typename T>
BlockActivations<T> Transformer<T>::allocate_block(Context& context, int64_t N, bool for_backward) const {
  DeviceArena& arena = context.arena;
  const int64_t d = config.hidden_size;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  BlockActivations<T> a{};
  a.attention_normed = norm_after ? nullptr : arena.template allocate<T>(N * d);
  a.attention_mean = arena.template allocate<float>(N);
  a.attention_rstd = arena.template allocate<float>(N);
  a.qkv = arena.template allocate<T>(N * config.qkv_size());
  if (config.qk_norm) {
    const int64_t raw_size = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim;
    a.raw_qk = for_backward ? arena.template allocate<T>(N * raw_size) : nullptr;
    a.query_rstd = arena.template allocate<float>(N * config.num_attention_heads);
    a.key_rstd = arena.template allocate<float>(N * config.num_key_value_heads);
  }
  a.lse = arena.template allocate<float>(N * config.num_attention_heads);
  a.attended = arena.template allocate<T>(N * config.attention_size());
  a.residual = for_backward ? arena.template allocate<T>(N * d) : nullptr;
  const int64_t M = for_backward ? N : mlp_rows_of(N);
  a.mlp_rows = M;
  a.mlp_normed = arena.template allocate<T>(M * d);
  a.mlp_mean = arena.template allocate<float>(N);
  a.mlp_rstd = arena.template allocate<float>(N);
  a.mlp_input = arena.template allocate<T>(M * config.mlp_input_size());
  const bool is_in_place = !for_backward && config.hidden_act != Activation::kSwiglu;
  a.mlp_activated = is_in_place ? a.mlp_input : arena.template allocate<T>(M * config.intermediate_size);
  if (norm_after) a.output_sum = for_backward ? arena.template allocate<T>(N * d) : a.mlp_normed;
  return a;
}

template <typename T>
int64_t Transformer<T>::mlp_rows_of(int64_t N) const {
  const int64_t activated = config.hidden_act == Activation::kSwiglu ? config.intermediate_size : 0;
  const auto row_bytes = static_cast<int64_t>(sizeof(T)) * (config.mlp_input_size() + activated);
  const int64_t most = std::max<int64_t>(128, engine.mlp_bytes / row_bytes / 128 * 128);
  return N <= most ? N : even_rows(N, most);
}

template <typename T>
Activations<T> Transformer<T>::forward(Context& context, const DeviceBatch& batch,
                                       const ForwardOptions<T>& options) const {
  DeviceArena& arena = context.arena;
  const int64_t N = batch.num_tokens, d = config.hidden_size, L = config.num_hidden_layers;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  Activations<T> activations{};
  activations.batch = &batch;
  activations.dropout_seed = options.dropout_seed;
  activations.recomputes_blocks = options.for_backward && options.recomputes_blocks;

  // Without a backward pass the residual stream stays in one buffer, but for hidden states that somebody asked for.
  T* stream = nullptr;  // [N, d]
  const auto next_of_stream = [&] {
    if (options.for_backward || stream == nullptr) stream = arena.template allocate<T>(N * d);
    return stream;
  };
  for (int64_t l = 0; l <= L; ++l) {
    T* buffer = entry(options.hidden, l);
    if (buffer == nullptr) {
      const bool is_kept = l == L || is_set(options.keep_hidden, l);
      buffer = is_kept ? arena.template allocate<T>(N * d) : next_of_stream();
    }
    activations.hidden.push_back(buffer);
  }

  activations.word_table = word_table(context);
  activations.embedded = norm_after ? arena.template allocate<T>(N * d) : activations.hidden[0];
  embedding_forward<T>(context, batch.input_ids, activations.word_table, batch.position_ids,
                       compute("embeddings.position"), batch.token_type_ids, compute("embeddings.token_type"),
                       activations.embedded, N, d);
  if (norm_after) {
    activations.embedded_mean = arena.template allocate<float>(N);
    activations.embedded_rstd = arena.template allocate<float>(N);
    norm_forward(context, embedding_norm_, activations.embedded, activations.hidden[0], activations.embedded_mean,
                 activations.embedded_rstd, N);
  }
  drop(context, activations, activations.hidden[0], config.embedding_dropout, kEmbeddingStream);

  // For inference, and where blocks are computed again, one block's buffers serve all blocks.
  const bool keeps_blocks = options.for_backward && !options.recomputes_blocks;
  T* final_input = norm_after ? activations.hidden[static_cast<size_t>(L)] : next_of_stream();
  for (int64_t l = 0; l < L; ++l) {
    BlockActivations<T> a =
        keeps_blocks || l == 0 ? allocate_block(context, N, options.for_backward) : activations.blocks[0];
    a.input = activations.hidden[static_cast<size_t>(l)];
    a.output = l + 1 == L ? final_input : activations.hidden[static_cast<size_t>(l + 1)];
    if (!options.for_backward) a.residual = a.output;
    block_forward(context, activations, l, a);
    if (is_set(options.keep_maps, l)) {
      a.maps = arena.template allocate<float>(config.num_attention_heads * batch.map_elements);
      attention_maps<T>(context, attention_shape(batch, l), a.qkv, a.lse, a.maps);
    } else {
      a.maps = nullptr;
    }
    if (is_set(options.keep_values, l)) {
      const int64_t width = config.num_key_value_heads * config.head_dim;
      a.values = arena.template allocate<T>(N * width);
      copy_columns<T>(context, a.qkv, config.qkv_size(), config.qkv_size() - width, a.values, N, width);
    } else {
      a.values = nullptr;
    }
    activations.blocks.push_back(a);
  }
  activations.final_input = final_input;
  if (!norm_after) {
    activations.final_mean = arena.template allocate<float>(N);
    activations.final_rstd = arena.template allocate<float>(N);
    norm_forward(context, final_norm_, final_input, activations.hidden[static_cast<size_t>(L)], activations.final_mean,
                 activations.final_rstd, N);
  }
  return activations;
}

template <typename T>
void Transformer<T>::backward(Context& context, const Activations<T>& activations,
                              const BackwardInputs<T>& inputs) const {
  const DeviceBatch& batch = *activations.batch;
  const int64_t N = batch.num_tokens, d = config.hidden_size, L = config.num_hidden_layers;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  const DeviceArena::Scope scope(context.arena);

  T* d_stream = inputs.d_final;  // [N, d] gradient of what the block in hand gave out
  if (!norm_after) {
    norm_backward(context, final_norm_, activations.final_input, activations.final_mean, activations.final_rstd,
                  inputs.d_final, d_stream, N, false, output_bias_of_norm(activations, inputs, L - 1));
  }
  for (int64_t l = L - 1; l >= 0; --l) {
    if (activations.recomputes_blocks && l + 1 < L) {
      // The buffers hold the block after this one; its output is there.
      BlockActivations<T> block = activations.blocks[static_cast<size_t>(l)];
      if (!norm_after) block.output = nullptr;
      block_forward(context, activations, l, block);
    }
    block_backward(context, activations, inputs, l, d_stream);
    if (const T* d_hidden = entry(inputs.d_hidden, l)) add_in_place<T>(context, d_hidden, d_stream, N * d);
  }
  drop(context, activations, d_stream, config.embedding_dropout, kEmbeddingStream);
  if (norm_after) {
    norm_backward(context, embedding_norm_, activations.embedded, activations.embedded_mean, activations.embedded_rstd,
                  d_stream, d_stream, N, false);
  }
  embedding_backward<T>(context, batch.word_order->device(), d_stream, inputs.d_word_table, d);
  if (config.positions == PositionKind::kLearned) {
    embedding_backward<T>(context, batch.position_order->device(), d_stream, gradient("embeddings.position"), d);
  }
  if (config.type_vocab_size > 0) {
    embedding_backward<T>(context, batch.token_type_order->device(), d_stream, gradient("embeddings.token_type"), d);
  }
}

template <typename T>
void Transformer<T>::block_forward(Context& context, const Activations<T>& activations, int64_t layer,
                                   BlockActivations<T>& a) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const DeviceBatch& batch = *activations.batch;
  const int64_t N = batch.num_tokens, d = config.hidden_size;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;

  const T* attention_input = a.input;
  if (!norm_after) {
    norm_forward(context, block.attention_norm, a.input, a.attention_normed, a.attention_mean, a.attention_rstd, N);
    attention_input = a.attention_normed;
  }
  linear_forward<T>(context, attention_input, block.qkv.weight, block.qkv.bias, nullptr, a.qkv, N, d,
                    config.qkv_size());
  turn_heads(context, block, batch, a);
  const AttentionDropout attention_dropout = dropout_of_attention(activations, layer);
  attention_forward<T>(context, attention_shape(batch, layer), a.qkv, a.attended, a.lse, attention_dropout);
  add_branch(context, activations, block.attention_output, a.attended, config.attention_size(), a.input, a.residual, N,
             attention_output_stream(layer));

  for (int64_t first = 0; first < N; first += a.mlp_rows) {
    feed_forward(context, activations, layer, a, first, std::min(a.mlp_rows, N - first));
  }
}

template <typename T>
void Transformer<T>::feed_forward(Context& context, const Activations<T>& activations, int64_t layer,
                                  const BlockActivations<T>& a, int64_t first, int64_t M) const {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const int64_t d = config.hidden_size, I = config.intermediate_size;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  const T* residual = a.residual + first * d;  // [M, d]
  if (norm_after) {
    norm_forward(context, block.attention_norm, residual, a.mlp_normed, a.attention_mean + first,
                 a.attention_rstd + first, M);
  } else {
    norm_forward(context, block.mlp_norm, residual, a.mlp_normed, a.mlp_mean + first, a.mlp_rstd + first, M);
  }
  if (config.hidden_act == Activation::kGeluTanh) {
    linear_gelu_forward<T>(context, a.mlp_normed, block.mlp_input.weight, block.mlp_input.bias,
                           a.mlp_input == a.mlp_activated ? nullptr : a.mlp_input, a.mlp_activated, M, d, I);
  } else {
    linear_forward<T>(context, a.mlp_normed, block.mlp_input.weight, block.mlp_input.bias, nullptr, a.mlp_input, M, d,
                      config.mlp_input_size());
    activation_forward<T>(context, config.hidden_act, a.mlp_input, a.mlp_activated, M, I);
  }
  if (a.output == nullptr) return;
  T* output = a.output + first * d;  // [M, d]
  T* sum = norm_after ? a.output_sum : output;
  add_branch(context, activations, block.mlp_output, a.mlp_activated, I, norm_after ? a.mlp_normed : residual, sum, M,
             mlp_output_stream(layer));
  if (norm_after) norm_forward(context, block.mlp_norm, sum, output, a.mlp_mean + first, a.mlp_rstd + first, M);
}

// d_stream [N, d]: in, the gradient of the block's output; out, of its input.
template <typename T>
void Transformer<T>::block_backward(Context& context, const Activations<T>& activations,
                                    const BackwardInputs<T>& inputs, int64_t layer, T* d_stream) const {
  const DeviceArena::Scope scope(context.arena);
  DeviceArena& arena = context.arena;
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const BlockActivations<T>& a = activations.blocks[static_cast<size_t>(layer)];
  const DeviceBatch& batch = *activations.batch;
  const int64_t N = batch.num_tokens, d = config.hidden_size, I = config.intermediate_size;
  const bool norm_after = config.norm_placement == NormPlacement::kAfter;
  PendingSums pending;                              // gradients of gains and biases
  T* d_normed = arena.template allocate<T>(N * d);  // also the branch's gradient under dropout, before that is spent

  const bool drops = drops_branches(activations);
  const bool adds = inputs.adds_to_weights;

  // Feed-forward.
  if (norm_after) {
    norm_backward(context, block.mlp_norm, a.output_sum, a.mlp_mean, a.mlp_rstd, d_stream, d_stream, N, false,
                  drops ? nullptr : block.mlp_output.d_bias, &pending);
  }
  const T* d_branch = branch_gradient(context, activations, d_stream, d_normed, mlp_output_stream(layer));
  T* d_activated = arena.template allocate<T>(N * I);
  T* d_mlp_input = d_activated;
  if (config.hidden_act == Activation::kGeluTanh) {
    linear_backward<T>(context, a.mlp_activated, block.mlp_output.weight, d_branch, nullptr, block.mlp_output.d_weight,
                       N, I, d, adds);
    linear_gelu_backward<T>(context, d_branch, block.mlp_output.weight, a.mlp_input, d_mlp_input,
                            block.mlp_input.d_bias, N, I, d, &pending);
  } else {
    linear_backward<T>(context, a.mlp_activated, block.mlp_output.weight, d_branch, d_activated,
                       block.mlp_output.d_weight, N, I, d, adds);
    if (config.hidden_act == Activation::kSwiglu) d_mlp_input = arena.template allocate<T>(N * 2 * I);
    activation_backward<T>(context, config.hidden_act, a.mlp_input, d_activated, d_mlp_input, block.mlp_input.d_bias, N,
                           I, &pending);
  }
  const bool is_summed = norm_after ? !drops : output_bias_of_norm(activations, inputs, layer) != nullptr;
  if (block.mlp_output.d_bias != nullptr && !is_summed) {
    add_row_sums<T>(context, d_branch, d, N, d, block.mlp_output.d_bias, &pending);
  }
  linear_backward<T>(context, a.mlp_normed, block.mlp_input.weight, d_mlp_input, d_normed, block.mlp_input.d_weight, N,
                     d, config.mlp_input_size(), adds);
  float* d_attention_bias = drops ? nullptr : block.attention_output.d_bias;
  if (norm_after) {
    add_in_place<T>(context, d_stream, d_normed, N * d);
    norm_backward(context, block.attention_norm, a.residual, a.attention_mean, a.attention_rstd, d_normed, d_stream, N,
                  false, d_attention_bias, &pending);
  } else {
    norm_backward(context, block.mlp_norm, a.residual, a.mlp_mean, a.mlp_rstd, d_normed, d_stream, N, true,
                  d_attention_bias, &pending);
  }

  // Attention; d_stream is now the gradient of input + attention output.
  d_branch = branch_gradient(context, activations, d_stream, d_normed, attention_output_stream(layer));
  T* d_attended = arena.template allocate<T>(N * config.attention_size());
  linear_backward<T>(context, a.attended, block.attention_output.weight, d_branch, d_attended,
                     block.attention_output.d_weight, N, config.attention_size(), d, adds);
  if (block.attention_output.d_bias != nullptr && drops) {
    add_row_sums<T>(context, d_branch, d, N, d, block.attention_output.d_bias, &pending);
  }
  T* d_qkv = arena.template allocate<T>(N * config.qkv_size());
  const AttentionDropout attention_dropout = dropout_of_attention(activations, layer);
  // Whether what attention gives is the gradient of the product's result, whose sums are that of the bias.
  const bool is_whole =
      config.positions != PositionKind::kRotary && !config.qk_norm && entry(inputs.d_values, layer) == nullptr;
  attention_backward<T>(context, attention_shape(batch, layer), a.qkv, a.attended, a.lse, d_attended, d_qkv,
                        entry(inputs.teacher_maps, layer), inputs.map_loss_scale, attention_dropout,
                        is_whole ? block.qkv.d_bias : nullptr, &pending);
  turn_heads_backward(context, block, batch, a, d_qkv, &pending);
  if (const T* d_values = entry(inputs.d_values, layer)) {
    const int64_t width = config.num_key_value_heads * config.head_dim;
    add_columns<T>(context, d_values, d_qkv, config.qkv_size(), config.qkv_size() - width, N, width);
  }
  linear_backward<T>(context, norm_after ? a.input : a.attention_normed, block.qkv.weight, d_qkv, d_normed,
                     block.qkv.d_weight, N, d, config.qkv_size(), adds);
  if (block.qkv.d_bias != nullptr && !is_whole) qkv_bias_backward(context, d_qkv, block.qkv.d_bias, N, &pending);
  if (norm_after) {
    add_in_place<T>(context, d_normed, d_stream, N * d);
  } else {
    norm_backward(context, block.attention_norm, a.input, a.attention_mean, a.attention_rstd, d_normed, d_stream, N,
                  true, output_bias_of_norm(activations, inputs, layer - 1), &pending);
  }
  pending.finish(context);
}

template <typename T>
void Transformer<T>::turn_heads(Context& context, const Block& block, const DeviceBatch& batch,
                                const BlockActivations<T>& a) const {
  const int64_t N = batch.num_tokens, hd = config.head_dim, stride = config.qkv_size();
  const int64_t H = config.num_attention_heads, KV = config.num_key_value_heads;
  if (config.qk_norm) {
    if (a.raw_qk != nullptr) copy_columns<T>(context, a.qkv, stride, 0, a.raw_qk, N, (H + KV) * hd);
    T* keys = a.qkv + H * hd;
    rms_norm_heads_forward<T>(context, a.qkv, stride, block.query_norm.weight, a.qkv, stride, a.query_rstd, N, H, hd,
                              config.norm_eps);
    rms_norm_heads_forward<T>(context, keys, stride, block.key_norm.weight, keys, stride, a.key_rstd, N, KV, hd,
                              config.norm_eps);
  }
  if (config.positions == PositionKind::kRotary) {
    rotary<T>(context, a.qkv, batch.position_ids, N, stride, H + KV, hd, cosines_, sines_, 1);
  }
}

// d_qkv [N, (H + 2KV)·hd]: in, the gradient of what attention read; out, of the product's result.
template <typename T>
void Transformer<T>::turn_heads_backward(Context& context, const Block& block, const DeviceBatch& batch,
                                         const BlockActivations<T>& a, T* d_qkv, PendingSums* pending) const {
  const int64_t N = batch.num_tokens, hd = config.head_dim, stride = config.qkv_size();
  const int64_t H = config.num_attention_heads, KV = config.num_key_value_heads;
  if (config.positions == PositionKind::kRotary) {
    rotary<T>(context, d_qkv, batch.position_ids, N, stride, H + KV, hd, cosines_, sines_, -1);
  }
  if (config.qk_norm) {
    const int64_t raw_stride = (H + KV) * hd;
    rms_norm_heads_backward<T>(context, a.raw_qk, raw_stride, block.query_norm.weight, a.query_rstd, d_qkv, stride,
                               block.query_norm.d_weight, N, H, hd, pending);
    rms_norm_heads_backward<T>(context, a.raw_qk + H * hd, raw_stride, block.key_norm.weight, a.key_rstd,
                               d_qkv + H * hd, stride, block.key_norm.d_weight, N, KV, hd, pending);
  }
}

/// sum [N, d] = stream [N, d] + dropout(x [N, in_features]·Wᵀ + b)
template <typename T>
void Transformer<T>::add_branch(Context& context, const Activations<T>& activations, const Linear& linear, const T* x,
                                int64_t in_features, const T* stream, T* sum, int64_t N,
                                uint64_t dropout_stream) const {
  const int64_t d = config.hidden_size;
  const bool drops = drops_branches(activations);
  linear_forward<T>(context, x, linear.weight, linear.bias, drops ? nullptr : stream, sum, N, in_features, d);
  if (!drops) return;
  drop(context, activations, sum, config.hidden_dropout, dropout_stream);
  add_in_place<T>(context, stream, sum, N * d);
}

template <typename T>
bool Transformer<T>::drops_branches(const Activations<T>& activations) const {
  return activations.dropout_seed != nullptr && config.hidden_dropout > 0;
}

template <typename T>
float* Transformer<T>::output_bias_of_norm(const Activations<T>& activations, const BackwardInputs<T>& inputs,
                                           int64_t layer) const {
  // Norm after: the norm is the block's own. A gradient from outside is added when the norm's work is done.
  if (layer < 0 || config.norm_placement == NormPlacement::kAfter || drops_branches(activations)) return nullptr;
  if (layer + 1 < config.num_hidden_layers && entry(inputs.d_hidden, layer + 1) != nullptr) return nullptr;
  return blocks_[static_cast<size_t>(layer)].mlp_output.d_bias;
}

/// The gradient of a branch before its dropout: d_stream itself, or in `buffer` with its mask.
template <typename T>
const T* Transformer<T>::branch_gradient(Context& context, const Activations<T>& activations, const T* d_stream,
                                         T* buffer, uint64_t dropout_stream) const {
  if (!drops_branches(activations)) return d_stream;
  const int64_t count = activations.batch->num_tokens * config.hidden_size;
  copy_on_device(context, buffer, d_stream, count);
  drop(context, activations, buffer, config.hidden_dropout, dropout_stream);
  return buffer;
}

template <typename T>
void Transformer<T>::qkv_bias_backward(Context& context, const T* d_qkv, float* d_bias, int64_t num_rows,
                                       PendingSums* pending) const {
  const int64_t size = config.qkv_size();
  if (config.positions == PositionKind::kRotary || config.qk_norm) {
    return add_row_sums<T>(context, d_qkv, size, num_rows, size, d_bias, pending);
  }
  // The gradient of a key bias is exactly zero, see model/transformer.cc.
  const int64_t keys = config.attention_size();
  const int64_t values = keys + config.num_key_value_heads * config.head_dim;
  add_row_sums<T>(context, d_qkv, size, num_rows, size, d_bias, pending, {keys, values});
}

template <typename T>
void Transformer<T>::backward_word_table(Context& context, const float* d_word_table) const {
  const int64_t V = config.vocab_size, d = config.hidden_size, f = config.item_feature_size;
  float* d_word = gradient("embeddings.word");
  if (d_word != d_word_table) add_in_place<float>(context, d_word_table, d_word, V * d);
  if (f == 0) return;
  const DeviceArena::Scope scope(context.arena);
  const T* d_table = nullptr;  // [V, d] in the precision of products
  if constexpr (std::is_same_v<T, float>) {
    d_table = d_word_table;
  } else {
    T* rounded = context.arena.template allocate<T>(V * d);
    convert<float, T>(context, d_word_table, rounded, V * d);
    d_table = rounded;
  }
  float* d_projection = gradient("item_projection.weight");  // [d, f] += d_tableᵀ·u
  gemm<T, float>(context, {d, f, V, true, false, d, f, f}, d_table, item_features_, nullptr, d_projection,
                 d_projection);
}

template <typename T>
HeadActivations<T> Transformer<T>::head_forward(Context& context, const T* hidden, int64_t num_rows) const {
  HeadActivations<T> a{};
  a.input = a.output = hidden;
  if (!config.masked_lm_head) return a;
  DeviceArena& arena = context.arena;
  const int64_t d = config.hidden_size;
  a.dense = arena.template allocate<T>(num_rows * d);
  a.activated = arena.template allocate<T>(num_rows * d);
  a.mean = arena.template allocate<float>(num_rows);
  a.rstd = arena.template allocate<float>(num_rows);
  T* output = arena.template allocate<T>(num_rows * d);
  linear_forward<T>(context, hidden, head_dense_.weight, head_dense_.bias, nullptr, a.dense, num_rows, d, d);
  activation_forward<T>(context, config.hidden_act, a.dense, a.activated, num_rows, d);
  norm_forward(context, head_norm_, a.activated, output, a.mean, a.rstd, num_rows);
  a.output = output;
  return a;
}

template <typename T>
void Transformer<T>::head_backward(Context& context, const HeadActivations<T>& a, T* d_output, T* d_input,
                                   int64_t num_rows) const {
  const int64_t d = config.hidden_size;
  if (!config.masked_lm_head) {
    if (d_input != d_output) copy_on_device(context, d_input, d_output, num_rows * d);
    return;
  }
  const DeviceArena::Scope scope(context.arena);
  T* d_activated = context.arena.template allocate<T>(num_rows * d);
  norm_backward(context, head_norm_, a.activated, a.mean, a.rstd, d_output, d_activated, num_rows, false);
  activation_backward<T>(context, config.hidden_act, a.dense, d_activated, d_activated, head_dense_.d_bias, num_rows,
                         d);
  linear_backward<T>(context, a.input, head_dense_.weight, d_activated, d_input, head_dense_.d_weight, num_rows, d, d,
                     true);
}

#define LIMBECK_INSTANTIATE(T)                                                                                   \
  template AttentionShape Transformer<T>::attention_shape(const DeviceBatch&, int64_t) const;                    \
  template AttentionShape Transformer<T>::relation_shape(const DeviceBatch&, int64_t) const;                     \
  template Activations<T> Transformer<T>::forward(Context&, const DeviceBatch&, const ForwardOptions<T>&) const; \
  template void Transformer<T>::backward(Context&, const Activations<T>&, const BackwardInputs<T>&) const;       \
  template void Transformer<T>::backward_word_table(Context&, const float*) const;                               \
  template HeadActivations<T> Transformer<T>::head_forward(Context&, const T*, int64_t) const;                   \
  template void Transformer<T>::head_backward(Context&, const HeadActivations<T>&, T*, T*, int64_t) const;
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
