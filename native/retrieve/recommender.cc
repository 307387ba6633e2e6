#include "retrieve/recommender.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/top_k.h"
#include "retrieve/topics.h"

namespace limbeck {

namespace {

TransformerConfig folded_config(TransformerConfig config) {
  if (!config.causal) throw Error("ERR_INVALID_ARGUMENT", "A recommender needs a causal model.");
  if (!config.tie_word_embeddings) {
    throw Error("ERR_INVALID_ARGUMENT",
                "A recommender needs a tied output table: items are scored by the vectors read.");
  }
  // The items live in a table of their own, which can grow.
  config.vocab_size = 1;
  config.item_feature_size = 0;
  config.embedding_dropout = config.attention_dropout = config.hidden_dropout = 0;
  return config;
}

// Sequences of a forward pass together have about this many tokens, so that their activations stay in the second-level
// cache of a thread.
constexpr int64_t kTokensAtOnce = 512;

}  // namespace

void check_item(const char* what, int32_t id, int64_t limit) {
  if (id < 0 || id >= limit) {
    throw Error("ERR_INVALID_ARGUMENT", std::string(what) + " has item " + std::to_string(id) +
                                            ", outside the catalogue of " + std::to_string(limit) + ".");
  }
}

void check_finite(const char* what, const float* values, int64_t count) {
  float sum = 0;  // NaN once a value is not finite, else 0; without a branch for each
  for (int64_t i = 0; i < count; ++i) sum += values[i] * 0.0f;
  if (sum == 0) return;
  throw Error("ERR_NOT_FINITE", std::string(what) + " are NaN or infinite: parameters of the student are damaged.");
}

Recommender::Recommender(Context& context, const Transformer& model)
    : model_(folded_config(model.config())),
      item_feature_size_(model.config().item_feature_size),
      items_(model.config().hidden_size) {
  const TransformerConfig& config = model_.config();
  const int64_t d = config.hidden_size;
  for (const Parameter& parameter : model_.parameters().list()) {
    std::memcpy(model_.parameters().values() + parameter.offset,
                model.parameters().values() + model.parameters().find(parameter.name).offset,
                static_cast<size_t>(parameter.count) * sizeof(float));
  }
  Context in_fp32{context.pool, context.scratch};
  model_.pack_weights(in_fp32, true);
  const Arena::Scope scope(context.scratch);
  const float* table = model.word_table(context, context.scratch);
  items_.append(table, model.config().vocab_size);
  if (item_feature_size_ > 0) {
    const float* projection = model.parameters().values() + model.parameters().find("item_projection.weight").offset;
    item_projection_.assign(projection, projection + d * item_feature_size_);
    const float* features = model.item_features();
    if (features != nullptr) {
      item_features_.assign(features, features + num_items() * item_feature_size_);
      normalise_rows(item_features_.data(), num_items(), item_feature_size_);
    }
  }
}

const float* Recommender::last_hidden(Context& context, Arena& arena, const float* vectors, int64_t length) const {
  const int32_t offsets[2] = {0, static_cast<int32_t>(length)};
  Batch batch{nullptr, offsets, nullptr, length, 1};
  batch.input_vectors = vectors;
  ForwardOptions options;
  options.last_rows_only = true;
  return model_.forward(context, arena, batch, options).hidden[model_.config().num_hidden_layers];
}

// Each thread takes parts of its own: within one nobody waits.
void Recommender::last_hidden(Context& context, Arena& arena, const Gather& gather, const int32_t* sequence_offsets,
                              int64_t num_sequences, float* last) const {
  const int64_t d = hidden_size();
  std::vector<int64_t> bounds{0};  // of parts, in sequences
  while (bounds.back() < num_sequences) {
    int64_t end = bounds.back();
    const int32_t begin = sequence_offsets[end];
    do ++end;
    while (end < num_sequences && sequence_offsets[end + 1] - begin <= kTokensAtOnce);
    bounds.push_back(end);
  }
  ThreadPool alone(1);
  std::vector<Arena> others(static_cast<size_t>(2 * (context.pool.num_threads() - 1)));
  context.pool.parallel_for(static_cast<int64_t>(bounds.size()) - 1, [&](int64_t index, int worker) {
    const size_t other = static_cast<size_t>(2 * (worker - 1));
    Arena& own_arena = worker == 0 ? arena : others[other];
    Context own{alone, worker == 0 ? context.scratch : others[other + 1], context.precision};
    const int64_t first = bounds[static_cast<size_t>(index)];
    const int64_t count = bounds[static_cast<size_t>(index) + 1] - first;
    const Arena::Scope scope(own_arena);
    const int32_t begin = sequence_offsets[first];
    int32_t* offsets = own_arena.allocate<int32_t>(count + 1);
    for (int64_t s = 0; s <= count; ++s) offsets[s] = sequence_offsets[first + s] - begin;
    Batch part{nullptr, offsets, nullptr, offsets[count], count};
    part.input_vectors = gather(begin, part.num_tokens, own, own_arena);
    ForwardOptions options;
    options.last_rows_only = true;
    const Activations activations = model_.forward(own, own_arena, part, options);
    std::memcpy(last + first * d, activations.hidden[model_.config().num_hidden_layers],
                static_cast<size_t>(count * d) * sizeof(float));
  });
}

void Recommender::last_hidden(Context& context, Arena& arena, const float* vectors, const int32_t* sequence_offsets,
                              int64_t num_sequences, float* last) const {
  const int64_t d = hidden_size();
  const Gather gather = [&](int64_t first, int64_t, Context&, Arena&) { return vectors + first * d; };
  last_hidden(context, arena, gather, sequence_offsets, num_sequences, last);
}

}  // namespace limbeck
