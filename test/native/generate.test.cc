#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "model_configs.h"
#include "ops/linear.h"
#include "test.h"

using namespace limbeck;

namespace {

TransformerConfig gpt2_like() { return gpt2_config({61, 24, 3, 4, 40, 32}); }

TransformerConfig llama_like(int64_t num_key_value_heads) {
  TransformerConfig config = gpt2_like();
  config.num_attention_heads = 8;
  config.num_key_value_heads = num_key_value_heads;
  config.norm = NormKind::kRmsNorm;
  config.positions = PositionKind::kRotary;
  config.rope_theta = 10000;
  config.hidden_act = Activation::kSwiglu;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = false;
  config.tie_word_embeddings = false;
  return config;
}

/// BERT's blocks and head, read from left to right.
TransformerConfig bert_like() {
  TransformerConfig config = gpt2_like();
  config.norm_placement = NormPlacement::kAfter;
  config.hidden_act = Activation::kGeluErf;
  config.type_vocab_size = 2;
  config.masked_lm_head = true;
  return config;
}

TransformerConfig mistral_like() {
  TransformerConfig config = llama_like(2);
  config.sliding_window = 4;
  return config;
}

/// Norms of queries and keys, heads wider than their share, a window in the later blocks, stretched positions.
TransformerConfig qwen3_like() {
  TransformerConfig config = llama_like(4);
  config.head_dim = 10;
  config.qk_norm = true;
  config.sliding_window = 3;
  config.max_window_layers = 1;
  config.rope_scaling.type = RopeType::kYarn;
  config.rope_scaling.factor = 4;
  config.rope_scaling.original_max_position_embeddings = 8;
  config.rope_scaling.attention_factor = 1.1f;
  return config;
}

/// Read from left to right; token 1 is padding, which kPrompt does not hold.
TransformerConfig roberta_like() {
  TransformerConfig config = bert_like();
  config.position_offset = 2;
  config.type_vocab_size = 1;
  return config;
}

TransformerConfig with_item_features() {
  TransformerConfig config = gpt2_like();
  config.item_feature_size = 5;
  return config;
}

std::vector<TransformerConfig> all_configs() {
  return {gpt2_like(),    llama_like(2), llama_like(1),  llama_like(8),       bert_like(),
          mistral_like(), qwen3_like(),  roberta_like(), with_item_features()};
}

/// Weights so large that attention is far from uniform and the next token depends on more than the last one.
Transformer random_model(const TransformerConfig& config, uint64_t seed) {
  Transformer model(config);
  uint64_t stream = 0;
  for (const Parameter& parameter : model.parameters().list()) {
    const Philox random{seed, stream++};
    const bool is_gain = parameter.name.find("norm.weight") != std::string::npos;
    for (int64_t i = 0; i < parameter.count; ++i) {
      model.parameters().values()[parameter.offset + i] =
          (is_gain ? 1 : 0) + 0.4f * random.normal(static_cast<uint64_t>(i));
    }
  }
  if (config.item_feature_size > 0) {
    std::vector<float> features;
    const Philox random{seed, stream};
    for (int64_t i = 0; i < config.vocab_size * config.item_feature_size; ++i) {
      features.push_back(random.normal(static_cast<uint64_t>(i)));
    }
    model.set_item_features(features.data());
  }
  return model;
}

struct Machine {
  explicit Machine(int num_threads = 1) : pool(num_threads) {}
  ThreadPool pool;
  Arena scratch, arena;
  Context context{pool, scratch};
};

/// Logits of the token after `ids`, by one pass over all of them.
std::vector<float> next_logits(Machine& machine, const Transformer& model, const std::vector<int32_t>& ids) {
  const TransformerConfig& config = model.config();
  const int64_t length = static_cast<int64_t>(ids.size()), d = config.hidden_size;
  const int32_t offsets[2] = {0, static_cast<int32_t>(length)};
  machine.arena.reset();
  const Activations activations =
      model.forward(machine.context, machine.arena, {ids.data(), offsets, nullptr, length, 1}, {});
  const float* last = activations.hidden[config.num_hidden_layers] + (length - 1) * d;
  const float* output = model.head_forward(machine.context, machine.arena, last, 1).output;
  const OutputTable table = model.output_table(activations.word_table);
  std::vector<float> logits(static_cast<size_t>(config.vocab_size));
  for (int64_t v = 0; v < config.vocab_size; ++v) {
    double sum = table.bias == nullptr ? 0 : table.bias[v];
    for (int64_t c = 0; c < d; ++c) sum += double{output[c]} * table.weight[v * d + c];
    logits[static_cast<size_t>(v)] = static_cast<float>(sum);
  }
  return logits;
}

int32_t argmax(const std::vector<float>& x) {
  return static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

GenerateOptions greedy(int64_t max_new_tokens) { return {max_new_tokens, 0, 0, 0, {}}; }

std::vector<int32_t> run(Machine& machine, const Transformer& model, const std::vector<int32_t>& prompt,
                         const GenerateOptions& options, const std::function<bool()>& should_stop = {}) {
  return Generation(model, prompt, options).next(machine.context, machine.arena, int64_t{1} << 60, should_stop);
}

const std::vector<int32_t> kPrompt = {7, 0, 60, 13, 13};

}  // namespace

TEST("greedy generation over cached keys equals the argmax of whole forward passes, for every kind of model") {
  for_each_isa([] {
    Machine machine;
    for (const TransformerConfig& config : all_configs()) {
      std::set<int32_t> seen;
      for (uint64_t seed = 1; seed <= 4; ++seed) {
        const Transformer model = random_model(config, seed);
        for (const size_t prompt_length : {1, 5}) {
          std::vector<int32_t> ids(kPrompt.begin(), kPrompt.begin() + static_cast<int64_t>(prompt_length));
          const std::vector<int32_t> result = run(machine, model, ids, greedy(20));
          CHECK(result.size() == 20);
          for (const int32_t id : result) {
            CHECK(id == argmax(next_logits(machine, model, ids)));
            ids.push_back(id);
          }
          seen.insert(result.begin(), result.end());
        }
      }
      CHECK(seen.size() > 5);
    }
  });
}

TEST("generation stops before eos, which is not part of the result") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 3);
  const std::vector<int32_t> whole = run(machine, model, kPrompt, greedy(20));
  GenerateOptions options = greedy(20);
  for (const int32_t eos : std::set<int32_t>(whole.begin(), whole.end())) {
    options.eos_token_ids = {eos};
    const std::vector<int32_t> expected(whole.begin(), std::find(whole.begin(), whole.end(), eos));
    CHECK(run(machine, model, kPrompt, options) == expected);
  }
}

TEST("prompt and result together fill the model's positions and no more") {
  Machine machine;
  for (const TransformerConfig& config : {gpt2_like(), llama_like(2)}) {
    const Transformer model = random_model(config, 5);
    std::vector<int32_t> prompt(static_cast<size_t>(config.max_position_embeddings) - 3, 4);
    CHECK(run(machine, model, prompt, greedy(3)).size() == 3);
    CHECK(run(machine, model, prompt, greedy(int64_t{1} << 60)).size() == 3);
    prompt.resize(static_cast<size_t>(config.max_position_embeddings), 4);
    CHECK(run(machine, model, prompt, greedy(10)).empty());
    prompt.push_back(4);
    CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, prompt, greedy(10)));
  }
}

TEST("should_stop is asked before each token") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 3);
  int asked = 0;
  const std::vector<int32_t> result = run(machine, model, kPrompt, greedy(20), [&] { return ++asked > 2; });
  CHECK(asked == 3);
  CHECK(result == run(machine, model, kPrompt, greedy(2)));
  CHECK(run(machine, model, kPrompt, greedy(0)).empty());
}

TEST("sampling is a function of the seed and the token's place, on any number of threads") {
  Machine machine, two_threads(2);
  const Transformer model = random_model(llama_like(2), 9);
  const GenerateOptions options{20, 1.5f, 0, 42, {}};
  const std::vector<int32_t> result = run(machine, model, kPrompt, options);
  CHECK(result == run(machine, model, kPrompt, options));
  CHECK(result == run(two_threads, model, kPrompt, options));
  GenerateOptions shorter = options, other_seed = options;
  shorter.max_new_tokens = 7;
  other_seed.seed = 43;
  CHECK(run(machine, model, kPrompt, shorter) == std::vector<int32_t>(result.begin(), result.begin() + 7));
  CHECK(run(machine, model, kPrompt, other_seed) != result);
  // Equal logits: only the draws differ from place to place.
  const std::vector<int32_t> uniform = run(machine, Transformer(gpt2_like()), kPrompt, options);
  CHECK(std::set<int32_t>(uniform.begin(), uniform.end()).size() > 10);
}

TEST("sampling takes only the top k tokens of a whole forward pass, and each of them, for every kind of model") {
  Machine machine;
  for (const TransformerConfig& config : all_configs()) {
    const Transformer model = random_model(config, 11);
    for (const int64_t k : {2, 4}) {
      std::set<int64_t> places;
      for (uint64_t seed = 0; seed < 20; ++seed) {
        std::vector<int32_t> ids = kPrompt;
        for (const int32_t id : run(machine, model, kPrompt, {12, 10.0f, k, seed, {}})) {
          const std::vector<float> logits = next_logits(machine, model, ids);
          const float own = logits[static_cast<size_t>(id)];
          const auto place = std::count_if(logits.begin(), logits.end(), [&](float x) { return x > own + 1e-4f; });
          CHECK(place < k);
          places.insert(place);
          ids.push_back(id);
        }
      }
      CHECK(static_cast<int64_t>(places.size()) == k);
    }
    GenerateOptions one = greedy(10);
    one.temperature = 5;
    one.top_k = 1;
    CHECK(run(machine, model, kPrompt, one) == run(machine, model, kPrompt, greedy(10)));
  }
}

TEST("draws follow softmax(logits / temperature)") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 2);
  constexpr float kTemperature = 2.0f;
  constexpr int kDraws = 4000;
  std::vector<double> expected;
  double total = 0;
  for (float logit : next_logits(machine, model, kPrompt)) {
    total += expected.emplace_back(std::exp(double{logit} / kTemperature));
  }
  for (const int64_t top_k : {0, 61, 1000}) {
    std::vector<int> counts(61, 0);
    for (int draw = 0; draw < kDraws; ++draw) {
      const GenerateOptions options{1, kTemperature, top_k, static_cast<uint64_t>(draw), {}};
      ++counts[static_cast<size_t>(run(machine, model, kPrompt, options)[0])];
    }
    for (size_t v = 0; v < counts.size(); ++v) {
      const double probability = expected[v] / total;
      const double deviation = std::sqrt(probability * (1 - probability) / kDraws);
      CHECK(std::fabs(static_cast<double>(counts[v]) / kDraws - probability) < 5 * deviation + 1.0 / kDraws);
    }
  }
}

TEST("a temperature near 0 draws the best token") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 2);
  for (const float temperature : {1e-3f, 1e-30f, std::numeric_limits<float>::denorm_min()}) {
    CHECK(run(machine, model, kPrompt, {10, temperature, 0, 1, {}}) == run(machine, model, kPrompt, greedy(10)));
  }
}

TEST("a text asked for in pieces is the text asked for at once") {
  Machine machine, other;
  const Transformer model = random_model(llama_like(2), 9), second = random_model(gpt2_like(), 4);
  GenerateOptions options{20, 1.5f, 0, 42, {}};
  options.repetition_penalty = 1.3f;
  options.top_p = 0.9f;
  const std::vector<int32_t> whole = run(machine, model, kPrompt, options);
  for (const int64_t piece : {1, 3, 20}) {
    Generation generation(model, kPrompt, options), between(second, kPrompt, options);
    std::vector<int32_t> ids;
    for (;;) {
      const std::vector<int32_t> more = generation.next(machine.context, machine.arena, piece, {});
      ids.insert(ids.end(), more.begin(), more.end());
      if (static_cast<int64_t>(more.size()) < piece) break;
      between.next(machine.context, machine.arena, 1, {});  // another text on the same memory
    }
    CHECK(ids == whole);
    CHECK(generation.next(machine.context, machine.arena, 5, {}).empty());
  }
}

TEST("draws come from the fewest tokens whose probabilities sum to top p, renormalised") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 2);
  constexpr float kTemperature = 2.0f;
  constexpr int kDraws = 4000;
  std::vector<std::pair<double, int32_t>> sorted;  // probability, id
  double total = 0;
  for (float logit : next_logits(machine, model, kPrompt)) {
    sorted.emplace_back(std::exp(double{logit} / kTemperature), static_cast<int32_t>(sorted.size()));
    total += sorted.back().first;
  }
  std::sort(sorted.rbegin(), sorted.rend());
  for (const int64_t top_k : {0, 20}) {
    const auto size = top_k == 0 ? sorted.size() : static_cast<size_t>(top_k);
    double mass = 0;
    for (size_t i = 0; i < size; ++i) mass += sorted[i].first;
    for (const float top_p : {0.01f, 0.5f, 0.9f}) {
      double kept = 0;
      size_t count = 0;
      while (kept < double{top_p} * mass) kept += sorted[count++].first;
      std::vector<int> counts(61, 0);
      for (int draw = 0; draw < kDraws; ++draw) {
        GenerateOptions options{1, kTemperature, top_k, static_cast<uint64_t>(draw), {}};
        options.top_p = top_p;
        ++counts[static_cast<size_t>(run(machine, model, kPrompt, options)[0])];
      }
      for (size_t i = 0; i < sorted.size(); ++i) {
        const double probability = i < count ? sorted[i].first / kept : 0;
        const double deviation = std::sqrt(probability * (1 - probability) / kDraws);
        const double drawn = static_cast<double>(counts[static_cast<size_t>(sorted[i].second)]) / kDraws;
        CHECK(std::fabs(drawn - probability) <= 5 * deviation + (i < count ? 1.0 / kDraws : 0));
      }
    }
  }
}

TEST("the repetition penalty falls on every token of prompt and result, once") {
  Machine machine;
  for (const TransformerConfig& config : all_configs()) {
    const Transformer model = random_model(config, 6);
    GenerateOptions options = greedy(15);
    options.repetition_penalty = 1.7f;
    std::vector<int32_t> ids = kPrompt;
    for (const int32_t id : run(machine, model, kPrompt, options)) {
      std::vector<float> logits = next_logits(machine, model, ids);
      for (const int32_t used : std::set<int32_t>(ids.begin(), ids.end())) {
        float& logit = logits[static_cast<size_t>(used)];
        logit = logit > 0 ? logit / 1.7f : logit * 1.7f;
      }
      CHECK(id == argmax(logits));
      ids.push_back(id);
    }
    CHECK(run(machine, model, kPrompt, options) != run(machine, model, kPrompt, greedy(15)));
  }
}

TEST("eos is not drawn before min new tokens") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 3);
  GenerateOptions options = greedy(20);
  const std::vector<int32_t> first = run(machine, model, kPrompt, greedy(2));
  options.eos_token_ids = {first[0], first[1] == first[0] ? first[0] + 1 : first[1]};
  CHECK(run(machine, model, kPrompt, options).empty());
  for (const int64_t min_new_tokens : {1, 4, 20}) {
    options.min_new_tokens = min_new_tokens;
    std::vector<int32_t> ids = kPrompt;
    const std::vector<int32_t> result = run(machine, model, kPrompt, options);
    CHECK(static_cast<int64_t>(result.size()) >= min_new_tokens);
    for (const int32_t id : result) {
      std::vector<float> logits = next_logits(machine, model, ids);
      for (const int32_t eos : options.eos_token_ids) logits[static_cast<size_t>(eos)] = -1e30f;
      CHECK(id == argmax(logits));
      ids.push_back(id);
    }
  }
}

TEST("a model that changes while it generates is an error, and so is going on after one") {
  Machine machine;
  Transformer model = random_model(gpt2_like(), 3);
  Generation generation(model, kPrompt, greedy(20));
  CHECK(generation.next(machine.context, machine.arena, 3, {}).size() == 3);
  model.parameters().values()[0] += 1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", generation.next(machine.context, machine.arena, 3, {}));
  model.parameters().values()[model.parameters().find("final_norm.bias").offset] =
      std::numeric_limits<float>::quiet_NaN();
  Generation damaged(model, kPrompt, greedy(20));
  CHECK_ERROR("ERR_NOT_FINITE", damaged.next(machine.context, machine.arena, 3, {}));
  CHECK(damaged.next(machine.context, machine.arena, 3, {}).empty());
}

TEST("generation refuses what it cannot do") {
  Machine machine;
  const Transformer model = random_model(gpt2_like(), 1);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, {}, greedy(3)));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, {61}, greedy(3)));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, {-1}, greedy(3)));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, greedy(-1)));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, -1.0f, 0, 0, {}}));
  CHECK_ERROR("ERR_INVALID_ARGUMENT",
              run(machine, model, kPrompt, {3, std::numeric_limits<float>::quiet_NaN(), 0, 0, {}}));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, 1, -1, 0, {}}));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, 1, 0, 0, {5, 61}}));
  for (const float top_p : {0.0f, 1.1f}) {
    CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, 1, 0, 0, {}, top_p}));
  }
  for (const float penalty : {0.0f, -1.0f, std::numeric_limits<float>::infinity()}) {
    CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, 1, 0, 0, {}, 1, penalty}));
  }
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, model, kPrompt, {3, 1, 0, 0, {}, 1, 1, -1}));
  TransformerConfig bidirectional = gpt2_like();
  bidirectional.causal = false;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, random_model(bidirectional, 1), kPrompt, greedy(3)));
  const Transformer without_features(with_item_features());
  CHECK_ERROR("ERR_INVALID_ARGUMENT", run(machine, without_features, kPrompt, greedy(3)));
}

TEST("a model whose logits are not finite is reported, not sampled") {
  Machine machine;
  Transformer model = random_model(gpt2_like(), 1);
  model.parameters().values()[model.parameters().find("final_norm.bias").offset] =
      std::numeric_limits<float>::quiet_NaN();
  CHECK_ERROR("ERR_NOT_FINITE", run(machine, model, kPrompt, greedy(3)));
  CHECK_ERROR("ERR_NOT_FINITE", run(machine, model, kPrompt, {3, 1, 5, 0, {}}));
}
