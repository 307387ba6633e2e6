#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "ops/activation.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/top_k.h"

namespace limbeck {

/// One sequence on its way through a causal model: the prompt at once, then token by token over cached keys and values.
class Generator {
 public:
  /// num_positions: tokens that will be read in all.
  Generator(Context& context, Arena& arena, const Transformer& model, int64_t num_positions);

  /// Reads the prompt; returns the logits [V] of the token that follows it.
  const float* prefill(const Batch& batch);
  /// Reads one more token; returns the logits [V] of the next.
  const float* step(int32_t id);

 private:
  void embed(int32_t id);
  void block_forward(int64_t layer);
  void attend(int64_t layer);
  const float* logits(const float* hidden);
  /// Rows of packed queries, keys and values go to the cache from row `length_` on.
  void remember(int64_t layer, const float* qkv, int64_t num_rows);

  Context& context_;
  Arena& arena_;
  const Transformer& model_;
  const TransformerConfig& config_;
  int64_t length_ = 0;                               // tokens read
  int64_t key_value_size_;                           // KV·hd
  const float* word_table_;                          // [V, d]
  const float *position_table_, *token_type_table_;  // null when the model has none
  float **keys_, **values_;                          // [L], each [num_positions, KV·hd]
  BlockActivations block_;                           // of one row, shared by all blocks
  float *embedded_, *stream_;                        // [d]
  float* logits_;                                    // [V]
};

Generator::Generator(Context& context, Arena& arena, const Transformer& model, int64_t num_positions)
    : context_(context),
      arena_(arena),
      model_(model),
      config_(model.config()),
      key_value_size_(config_.num_key_value_heads * config_.head_dim),
      word_table_(model.word_table(context, arena)),
      position_table_(model.value("embeddings.position")),
      token_type_table_(model.value("embeddings.token_type")),
      keys_(arena.allocate<float*>(config_.num_hidden_layers)),
      values_(arena.allocate<float*>(config_.num_hidden_layers)),
      block_(model.allocate_block(arena, 1, false)),
      embedded_(arena.allocate<float>(config_.hidden_size)),
      stream_(arena.allocate<float>(config_.hidden_size)),
      logits_(arena.allocate<float>(config_.vocab_size)) {
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    keys_[l] = arena.allocate<float>(num_positions * key_value_size_);
    values_[l] = arena.allocate<float>(num_positions * key_value_size_);
  }
}

const float* Generator::prefill(const Batch& batch) {
  const Arena::Scope scope(arena_);
  ForwardOptions options;
  options.for_backward = true;  // so that each block keeps its own keys and values
  const Activations activations = model_.forward(context_, arena_, batch, options);
  const int64_t L = config_.num_hidden_layers;
  for (int64_t l = 0; l < L; ++l) remember(l, activations.blocks[l].qkv, batch.num_tokens);
  length_ = batch.num_tokens;
  return logits(activations.hidden[L] + (batch.num_tokens - 1) * config_.hidden_size);
}

const float* Generator::step(int32_t id) {
  embed(id);
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) block_forward(l);
  ++length_;
  if (config_.norm_placement == NormPlacement::kAfter) return logits(stream_);
  model_.norm_forward(context_, model_.final_norm_, stream_, embedded_, block_.mlp_mean, block_.mlp_rstd, 1);
  return logits(embedded_);
}

void Generator::embed(int32_t id) {
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  const int64_t d = config_.hidden_size;
  const int32_t position = static_cast<int32_t>(length_ + config_.position_offset), token_type = 0;
  float* sum = norm_after ? embedded_ : stream_;
  embedding_forward(context_, &id, word_table_, sum, 1, d, config_.vocab_size);
  if (position_table_ != nullptr) {
    embedding_add_forward(context_, &position, position_table_, sum, 1, d, config_.position_rows());
  }
  if (token_type_table_ != nullptr) {
    embedding_add_forward(context_, &token_type, token_type_table_, sum, 1, d, config_.type_vocab_size);
  }
  if (norm_after) {
    model_.norm_forward(context_, model_.embedding_norm_, sum, stream_, block_.mlp_mean, block_.mlp_rstd, 1);
  }
}

// Transformer::block_forward for the newest row alone; stream_ is the block's input, then its output.
void Generator::block_forward(int64_t layer) {
  const Transformer::Block& block = model_.blocks_[static_cast<size_t>(layer)];
  const BlockActivations& a = block_;
  const int64_t d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;

  const float* attention_input = stream_;
  if (!norm_after) {
    model_.norm_forward(context_, block.attention_norm, stream_, a.attention_normed, a.attention_mean, a.attention_rstd,
                        1);
    attention_input = a.attention_normed;
  }
  linear_forward(context_, attention_input, block.qkv.weight, block.qkv.bias, a.qkv, 1, d, config_.qkv_size());
  const int32_t position = static_cast<int32_t>(length_);
  model_.turn_heads(context_, block, a.qkv, &position, 1, config_.qkv_size(), config_.num_attention_heads,
                    config_.num_key_value_heads, a.query_rstd, a.key_rstd);
  remember(layer, a.qkv, 1);
  attend(layer);
  linear_forward(context_, a.attended, block.attention_output.weight, block.attention_output.bias, a.residual, 1,
                 config_.attention_size(), d);
  add_in_place(context_, stream_, a.residual, d);

  const Transformer::Norm& norm = norm_after ? block.attention_norm : block.mlp_norm;
  model_.norm_forward(context_, norm, a.residual, a.mlp_normed, a.mlp_mean, a.mlp_rstd, 1);
  linear_forward(context_, a.mlp_normed, block.mlp_input.weight, block.mlp_input.bias, a.mlp_input, 1, d,
                 config_.mlp_input_size());
  model_.activation_forward(context_, a.mlp_input, a.mlp_activated, 1);
  float* sum = norm_after ? a.output_sum : stream_;
  linear_forward(context_, a.mlp_activated, block.mlp_output.weight, block.mlp_output.bias, sum, 1,
                 config_.intermediate_size, d);
  add_in_place(context_, norm_after ? a.mlp_normed : a.residual, sum, d);
  if (norm_after) model_.norm_forward(context_, block.mlp_norm, sum, stream_, a.mlp_mean, a.mlp_rstd, 1);
}

void Generator::remember(int64_t layer, const float* qkv, int64_t num_rows) {
  const size_t row_bytes = static_cast<size_t>(key_value_size_) * sizeof(float);
  for (int64_t i = 0; i < num_rows; ++i) {
    const float* key = qkv + i * config_.qkv_size() + config_.attention_size();
    std::memcpy(keys_[layer] + (length_ + i) * key_value_size_, key, row_bytes);
    std::memcpy(values_[layer] + (length_ + i) * key_value_size_, key + key_value_size_, row_bytes);
  }
}

// The newest token sees the cached ones, those in its window at most, and itself.
void Generator::attend(int64_t layer) {
  attend_row(context_, model_.attention_shape({}, layer), block_.qkv, keys_[layer], values_[layer], key_value_size_,
             length_ + 1, block_.attended);
}

const float* Generator::logits(const float* hidden) {
  const Arena::Scope scope(arena_);
  const int64_t V = config_.vocab_size, d = config_.hidden_size;
  const HeadActivations head = model_.head_forward(context_, arena_, hidden, 1);
  const OutputTable table = model_.output_table(word_table_);
  gemm(context_, 1, V, d, {head.output, d, 1}, {table.weight, 1, d}, table.bias, logits_, V, false);
  return logits_;
}

namespace {

constexpr uint64_t kSamplingStream = uint64_t{1} << 42;  // away from the dropout masks and the sampled negatives

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_options(const GenerateOptions& options) {
  if (options.max_new_tokens < 0) {
    invalid("Expected maxNewTokens of at least 0, got " + std::to_string(options.max_new_tokens) + ".");
  }
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    invalid("Expected a finite temperature of at least 0, got " + std::to_string(options.temperature) + ".");
  }
  if (options.top_k < 0) invalid("Expected topK of at least 0, got " + std::to_string(options.top_k) + ".");
}

/// Chooses among the logits: the best, or a draw from softmax(logits / temperature) over the top k.
class Sampler {
 public:
  Sampler(const GenerateOptions& options, int64_t vocab_size) : options_(options), vocab_size_(vocab_size) {
    const int64_t wanted = options.temperature == 0 ? 1 : options.top_k;
    keeps_all_ = wanted == 0 || wanted >= vocab_size;
    ids_.resize(static_cast<size_t>(keeps_all_ ? vocab_size : wanted));
    values_.resize(ids_.size());
    std::iota(ids_.begin(), ids_.end(), 0);
  }

  int32_t choose(const float* logits, uint64_t index) {
    if (!std::isfinite(log_sum_exp(logits, vocab_size_))) {
      throw Error("ERR_NOT_FINITE", "The model gave logits that are NaN or infinite: its parameters are damaged.");
    }
    const auto count = static_cast<int64_t>(ids_.size());
    if (keeps_all_) {
      std::copy(logits, logits + vocab_size_, values_.begin());
    } else {
      top_k(logits, nullptr, vocab_size_, count, ids_.data(), values_.data());
    }
    const auto best = std::max_element(values_.begin(), values_.end());
    if (options_.temperature == 0) return ids_[static_cast<size_t>(best - values_.begin())];

    const double highest = *best;
    auto mass = [&](float value) { return std::exp((value - highest) / options_.temperature); };
    double total = 0;
    for (float value : values_) total += mass(value);
    const Philox random{options_.seed, kSamplingStream};
    double left = random.word(index) * 0x1p-32 * total;
    // A draw that rounding carries past the end falls to the best.
    size_t chosen = static_cast<size_t>(best - values_.begin());
    for (size_t i = 0; i < values_.size(); ++i) {
      const double part = mass(values_[i]);
      if (left < part) {
        chosen = i;
        break;
      }
      left -= part;
    }
    return ids_[chosen];
  }

 private:
  const GenerateOptions& options_;
  int64_t vocab_size_;
  bool keeps_all_;
  std::vector<int32_t> ids_;   // candidates
  std::vector<float> values_;  // their logits
};

}  // namespace

std::vector<int32_t> generate(Context& context, Arena& arena, const Transformer& model, const int32_t* input_ids,
                              int64_t num_tokens, const GenerateOptions& options,
                              const std::function<bool()>& should_stop) {
  const TransformerConfig& config = model.config();
  check_options(options);
  if (!config.causal) invalid("Only a causal model generates; this one reads both ways.");
  if (num_tokens < 1 || num_tokens > config.max_position_embeddings) {
    invalid("Expected inputIds of 1 to " + std::to_string(config.max_position_embeddings) + " tokens, got " +
            std::to_string(num_tokens) + ". Cut them.");
  }
  const int32_t offsets[2] = {0, static_cast<int32_t>(num_tokens)};
  const Batch batch{input_ids, offsets, nullptr, num_tokens, 1};
  check_batch(config, batch);

  std::vector<int32_t> result;
  const int64_t limit = std::min(options.max_new_tokens, config.max_position_embeddings - num_tokens);
  if (limit == 0) return result;
  arena.reset();
  Generator generator(context, arena, model, num_tokens + limit - 1);  // the last token is not read
  Sampler sampler(options, config.vocab_size);
  while (static_cast<int64_t>(result.size()) < limit && !(should_stop && should_stop())) {
    const float* logits = result.empty() ? generator.prefill(batch) : generator.step(result.back());
    const int32_t id = sampler.choose(logits, result.size());
    if (id == options.eos_token_id) break;
    result.push_back(id);
  }
  return result;
}

}  // namespace limbeck
