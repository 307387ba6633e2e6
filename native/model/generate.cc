#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "ops/activation.h"
#include "ops/embedding.h"
#include "ops/top_k.h"

namespace limbeck {

/// One sequence on its way through a causal model: the prompt at once, then token by token over cached keys and values.
class Generator {
 public:
  /// num_positions: tokens that will be read in all.
  Generator(Context& context, Arena& cache, const Transformer& model, int64_t num_positions);

  /// Reads the prompt, its activations in `arena`; returns the logits [V] of the token that follows it.
  float* prefill(Context& context, Arena& arena, const Batch& batch);
  /// Reads one more token; returns the logits [V] of the next.
  float* step(Context& context, int32_t id);

 private:
  void embed(Context& context, int32_t id);
  void block_forward(Context& context, int64_t layer);
  void attend(Context& context, int64_t layer);
  float* logits(Context& context, const float* hidden);
  /// Rows of packed queries, keys and values go to the cache from row `length_` on.
  void remember(int64_t layer, const float* qkv, int64_t num_rows);

  Arena& cache_;
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

Generator::Generator(Context& context, Arena& cache, const Transformer& model, int64_t num_positions)
    : cache_(cache),
      model_(model),
      config_(model.config()),
      key_value_size_(config_.num_key_value_heads * config_.head_dim),
      word_table_(model.word_table(context, cache)),
      position_table_(model.value("embeddings.position")),
      token_type_table_(model.value("embeddings.token_type")),
      keys_(cache.allocate<float*>(config_.num_hidden_layers)),
      values_(cache.allocate<float*>(config_.num_hidden_layers)),
      block_(model.allocate_block(cache, 1, false)),
      embedded_(cache.allocate<float>(config_.hidden_size)),
      stream_(cache.allocate<float>(config_.hidden_size)),
      logits_(cache.allocate<float>(config_.vocab_size)) {
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    keys_[l] = cache.allocate<float>(num_positions * key_value_size_);
    values_[l] = cache.allocate<float>(num_positions * key_value_size_);
  }
}

float* Generator::prefill(Context& context, Arena& arena, const Batch& batch) {
  ForwardOptions options;
  options.for_backward = true;  // so that each block keeps its own keys and values
  const Activations activations = model_.forward(context, arena, batch, options);
  const int64_t L = config_.num_hidden_layers;
  for (int64_t l = 0; l < L; ++l) remember(l, activations.blocks[l].qkv, batch.num_tokens);
  length_ = batch.num_tokens;
  return logits(context, activations.hidden[L] + (batch.num_tokens - 1) * config_.hidden_size);
}

float* Generator::step(Context& context, int32_t id) {
  embed(context, id);
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) block_forward(context, l);
  ++length_;
  if (config_.norm_placement == NormPlacement::kAfter) return logits(context, stream_);
  model_.norm_forward(context, model_.final_norm_, stream_, embedded_, block_.mlp_mean, block_.mlp_rstd, 1);
  return logits(context, embedded_);
}

void Generator::embed(Context& context, int32_t id) {
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;
  const int64_t d = config_.hidden_size;
  const int32_t position = static_cast<int32_t>(length_ + config_.position_offset), token_type = 0;
  float* sum = norm_after ? embedded_ : stream_;
  embedding_forward(context, &id, word_table_, sum, 1, d, config_.vocab_size);
  if (position_table_ != nullptr) {
    embedding_add_forward(context, &position, position_table_, sum, 1, d, config_.position_rows());
  }
  if (token_type_table_ != nullptr) {
    embedding_add_forward(context, &token_type, token_type_table_, sum, 1, d, config_.type_vocab_size);
  }
  if (norm_after) {
    model_.norm_forward(context, model_.embedding_norm_, sum, stream_, block_.mlp_mean, block_.mlp_rstd, 1);
  }
}

// Transformer::block_forward for the newest row alone; stream_ is the block's input, then its output.
void Generator::block_forward(Context& context, int64_t layer) {
  const Transformer::Block& block = model_.blocks_[static_cast<size_t>(layer)];
  const BlockActivations& a = block_;
  const int64_t d = config_.hidden_size;
  const bool norm_after = config_.norm_placement == NormPlacement::kAfter;

  const float* attention_input = stream_;
  if (!norm_after) {
    model_.norm_forward(context, block.attention_norm, stream_, a.attention_normed, a.attention_mean, a.attention_rstd,
                        1);
    attention_input = a.attention_normed;
  }
  model_.linear_columns(context, block.qkv, attention_input, a.qkv, 1, d, 0, config_.qkv_size(), config_.qkv_size());
  const int32_t position = static_cast<int32_t>(length_);
  model_.turn_heads(context, block, a.qkv, &position, 1, config_.qkv_size(), config_.num_attention_heads,
                    config_.num_key_value_heads, a.query_rstd, a.key_rstd);
  remember(layer, a.qkv, 1);
  attend(context, layer);
  model_.linear_columns(context, block.attention_output, a.attended, a.residual, 1, config_.attention_size(), 0, d, d);
  add_in_place(context, stream_, a.residual, d);

  const Transformer::Norm& norm = norm_after ? block.attention_norm : block.mlp_norm;
  model_.norm_forward(context, norm, a.residual, a.mlp_normed, a.mlp_mean, a.mlp_rstd, 1);
  model_.linear_columns(context, block.mlp_input, a.mlp_normed, a.mlp_input, 1, d, 0, config_.mlp_input_size(),
                        config_.mlp_input_size());
  model_.activation_forward(context, a.mlp_input, a.mlp_activated, 1);
  float* sum = norm_after ? a.output_sum : stream_;
  model_.linear_columns(context, block.mlp_output, a.mlp_activated, sum, 1, config_.intermediate_size, 0, d, d);
  add_in_place(context, norm_after ? a.mlp_normed : a.residual, sum, d);
  if (norm_after) model_.norm_forward(context, block.mlp_norm, sum, stream_, a.mlp_mean, a.mlp_rstd, 1);
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
void Generator::attend(Context& context, int64_t layer) {
  attend_row(context, model_.attention_shape({}, layer), block_.qkv, keys_[layer], values_[layer], key_value_size_,
             length_ + 1, block_.attended);
}

float* Generator::logits(Context& context, const float* hidden) {
  const Arena::Scope scope(cache_);
  const int64_t V = config_.vocab_size, d = config_.hidden_size;
  const HeadActivations head = model_.head_forward(context, cache_, hidden, 1);
  const OutputTable table = model_.output_table(word_table_);
  gemm(context, 1, V, d, {head.output, d, 1}, {table.weight, 1, d}, table.bias, logits_, V, false);
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
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    invalid("Expected topP above 0 and at most 1, got " + std::to_string(options.top_p) + ".");
  }
  if (!(options.repetition_penalty > 0) || !std::isfinite(options.repetition_penalty)) {
    invalid("Expected a finite repetitionPenalty above 0, got " + std::to_string(options.repetition_penalty) + ".");
  }
  if (options.min_new_tokens < 0) {
    invalid("Expected minNewTokens of at least 0, got " + std::to_string(options.min_new_tokens) + ".");
  }
}

}  // namespace

/// Chooses among the logits: the best, or a draw from softmax(logits / temperature) over the top k and the top p.
class Sampler {
 public:
  Sampler(const GenerateOptions& options, int64_t vocab_size) : options_(options), vocab_size_(vocab_size) {
    const int64_t wanted = options.temperature == 0 ? 1 : options.top_k;
    keeps_all_ = wanted == 0 || wanted >= vocab_size;
    candidates_.resize(static_cast<size_t>(keeps_all_ ? vocab_size : wanted));
    if (keeps_all_) return;
    ids_.resize(candidates_.size());
    values_.resize(candidates_.size());
  }

  /// The id is in the text from now on.
  void add(int32_t id) {
    if (options_.repetition_penalty == 1) return;
    if (std::find(used_.begin(), used_.end(), id) == used_.end()) used_.push_back(id);
  }

  /// index: place in the result. logits [V] are changed.
  int32_t choose(float* logits, uint64_t index) {
    if (!std::isfinite(log_sum_exp(logits, vocab_size_))) {
      throw Error("ERR_NOT_FINITE", "The model gave logits that are NaN or infinite: its parameters are damaged.");
    }
    for (const int32_t id : used_) {
      logits[id] *= logits[id] > 0 ? 1 / options_.repetition_penalty : options_.repetition_penalty;
    }
    if (static_cast<int64_t>(index) < options_.min_new_tokens) {
      for (const int32_t id : options_.eos_token_ids) logits[id] = -std::numeric_limits<float>::infinity();
    }
    find_candidates(logits);
    const Candidate best = *std::min_element(candidates_.begin(), candidates_.end(), is_before);
    if (options_.temperature == 0) return best.id;

    const auto mass = [&](float value) { return std::exp((double{value} - best.value) / options_.temperature); };
    double total = 0;
    for (const Candidate& candidate : candidates_) total += mass(candidate.value);
    auto begin = candidates_.begin();
    if (options_.top_p < 1) {
      // The best ones gather at the end of the heap, until they have their share.
      const auto is_after = [](const Candidate& left, const Candidate& right) { return is_before(right, left); };
      std::make_heap(candidates_.begin(), candidates_.end(), is_after);
      const double wanted = double{options_.top_p} * total;
      begin = candidates_.end();
      for (total = 0; begin != candidates_.begin() && total < wanted; --begin) {
        std::pop_heap(candidates_.begin(), begin, is_after);
        total += mass((begin - 1)->value);
      }
    }
    const Philox random{options_.seed, kSamplingStream};
    double left = random.word(index) * 0x1p-32 * total;
    for (auto candidate = begin; candidate != candidates_.end(); ++candidate) {
      const double part = mass(candidate->value);
      if (left < part) return candidate->id;
      left -= part;
    }
    return best.id;  // a draw that rounding carried past the end
  }

 private:
  struct Candidate {
    float value;  // logit
    int32_t id;
  };
  static bool is_before(const Candidate& left, const Candidate& right) {
    return left.value > right.value || (left.value == right.value && left.id < right.id);
  }

  void find_candidates(const float* logits) {
    const auto count = static_cast<int64_t>(candidates_.size());
    if (!keeps_all_) top_k(logits, nullptr, vocab_size_, count, ids_.data(), values_.data());
    for (int64_t i = 0; i < count; ++i) {
      const size_t place = static_cast<size_t>(i);
      candidates_[place] =
          keeps_all_ ? Candidate{logits[i], static_cast<int32_t>(i)} : Candidate{values_[place], ids_[place]};
    }
  }

  const GenerateOptions& options_;
  int64_t vocab_size_;
  bool keeps_all_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> ids_;   // of the top k
  std::vector<float> values_;  // their logits
  std::vector<int32_t> used_;  // ids that the penalty is for, each once
};

Generation::Generation(const Transformer& model, std::vector<int32_t> input_ids, const GenerateOptions& options)
    : model_(model), input_ids_(std::move(input_ids)), options_(options), parameter_version_(model.version()) {
  const TransformerConfig& config = model.config();
  const auto num_tokens = static_cast<int64_t>(input_ids_.size());
  check_options(options);
  if (!config.causal) invalid("Only a causal model generates; this one reads both ways.");
  for (const int32_t id : options.eos_token_ids) {
    if (id >= 0 && id < config.vocab_size) continue;
    invalid("eosTokenIds: " + std::to_string(id) + " is outside the vocabulary of " +
            std::to_string(config.vocab_size) + ".");
  }
  if (num_tokens < 1 || num_tokens > config.max_position_embeddings) {
    invalid("Expected inputIds of 1 to " + std::to_string(config.max_position_embeddings) + " tokens, got " +
            std::to_string(num_tokens) + ". Cut them.");
  }
  const int32_t offsets[2] = {0, static_cast<int32_t>(num_tokens)};
  check_batch(config, {input_ids_.data(), offsets, nullptr, num_tokens, 1});
  limit_ = std::min(options.max_new_tokens, config.max_position_embeddings - num_tokens);
}

Generation::~Generation() = default;

std::vector<int32_t> Generation::next(Context& context, Arena& arena, int64_t count,
                                      const std::function<bool()>& should_stop) {
  if (model_.version() != parameter_version_) {
    invalid("The model was changed while it generated. Generate when its training is done.");
  }
  std::vector<int32_t> tokens;
  while (static_cast<int64_t>(tokens.size()) < count && num_tokens_ < limit_ && !has_ended_ &&
         !(should_stop && should_stop())) {
    float* logits = nullptr;
    has_ended_ = true;  // unless this token is found: after an error there is no next one
    if (generator_ == nullptr) {
      const auto prompt_length = static_cast<int64_t>(input_ids_.size());
      const int32_t offsets[2] = {0, static_cast<int32_t>(prompt_length)};
      arena.reset();
      // The last token is not read.
      generator_ = std::make_unique<Generator>(context, cache_, model_, prompt_length + limit_ - 1);
      sampler_ = std::make_unique<Sampler>(options_, model_.config().vocab_size);
      for (const int32_t id : input_ids_) sampler_->add(id);
      logits = generator_->prefill(context, arena, {input_ids_.data(), offsets, nullptr, prompt_length, 1});
    } else {
      logits = generator_->step(context, last_id_);
    }
    last_id_ = sampler_->choose(logits, static_cast<uint64_t>(num_tokens_));
    const std::vector<int32_t>& ends = options_.eos_token_ids;
    has_ended_ = std::find(ends.begin(), ends.end(), last_id_) != ends.end();
    if (has_ended_) break;
    sampler_->add(last_id_);
    tokens.push_back(last_id_);
    ++num_tokens_;
  }
  return tokens;
}

}  // namespace limbeck
