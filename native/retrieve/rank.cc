#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "cpu/kernels.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/logit_blocks.h"
#include "ops/top_k.h"
#include "retrieve/recommender.h"

namespace limbeck {
namespace {

// Each is scored for all of them, and one of those scores is read.
constexpr int64_t kTargetsAtOnce = 28;

/// A case while the catalogue goes by.
struct RankedCase {
  float target_score;
  int64_t num_best;                             // of the best items so far
  const int32_t *next_excluded, *end_excluded;  // ascending; the target is not among them
};

/// The scores of the targets, with the bits that they have among all others.   last [S, d], table [V, d]
void score_targets(Context& context, const float* last, const float* table, const int32_t* targets, int64_t S,
                   int64_t d, int64_t V, RankedCase* cases) {
  // Nothing to share out: all of it is a few products.
  ThreadPool alone(1);
  Context own{alone, context.scratch, context.precision};
  for (int64_t begin = 0; begin < S; begin += kTargetsAtOnce) {
    const Arena::Scope scope(context.scratch);
    const int64_t count = std::min(kTargetsAtOnce, S - begin);
    float* vectors = context.scratch.allocate<float>(count * d);     // [count, d]
    float* scores = context.scratch.allocate<float>(count * count);  // [count, count]
    embedding_forward(own, targets + begin, table, vectors, count, d, V);
    const PackedMatrix packed(own, context.scratch, {vectors, 1, d}, d, count);
    gemm_packed(own, count, 0, count, {last + begin * d, d, 1}, packed, nullptr, scores, count);
    for (int64_t i = 0; i < count; ++i) cases[begin + i].target_score = scores[i * count + i];
  }
}

/// Scores x [count] of items `first` on. Those of what is excluded become NaN.
void rank_block(RankedCase& of, float* x, int64_t first, int64_t count, int32_t* rank) {
  // A NaN anywhere counts against the target, which counts itself.
  int64_t not_less = cpu_kernels().count_not_less(x, count, of.target_score);
  for (; of.next_excluded != of.end_excluded && *of.next_excluded < first + count; ++of.next_excluded) {
    float& score = x[*of.next_excluded - first];
    if (!(score < of.target_score)) --not_less;
    score = std::numeric_limits<float>::quiet_NaN();
  }
  *rank += static_cast<int32_t>(not_less);
}

/// The exclusions of each case, ascending, each once and without its target.   ids [all], offsets [S + 1] =
void order_exclusions(ThreadPool& pool, const RankInputs& inputs, int32_t* ids, int32_t* offsets) {
  const int64_t S = inputs.batch.num_sequences;
  const int32_t* given = inputs.exclude_offsets;
  std::copy(inputs.exclude_ids, inputs.exclude_ids + given[S], ids);
  pool.parallel_for(S, [&](int64_t s, int) {
    int32_t *first = ids + given[s], *end = ids + given[s + 1];
    std::sort(first, end);
    end = std::remove(first, std::unique(first, end), inputs.targets[s]);
    offsets[s + 1] = static_cast<int32_t>(end - first);
  });
  offsets[0] = 0;
  for (int64_t s = 0; s < S; ++s) {
    std::memmove(ids + offsets[s], ids + given[s], static_cast<size_t>(offsets[s + 1]) * sizeof(int32_t));
    offsets[s + 1] += offsets[s];
  }
}

}  // namespace

void Recommender::rank(Context& context, Arena& arena, const RankInputs& inputs, int32_t* ranks, int32_t* top_k_ids,
                       float* top_k_scores, RequestDevice* device) const {
  const TransformerConfig& config = model_.config();
  Batch batch = inputs.batch;
  batch.input_vectors = items_.vectors();  // ids are checked here, against this catalogue
  check_batch(config, batch);
  const int64_t S = batch.num_sequences, V = num_items(), d = config.hidden_size, k = inputs.top_k;
  for (int64_t i = 0; i < batch.num_tokens; ++i) check_item("inputIds", batch.input_ids[i], V);
  if (inputs.exclude_offsets[0] != 0) throw Error("ERR_INVALID_ARGUMENT", "excludeOffsets must begin with 0.");
  for (int64_t s = 0; s < S; ++s) {
    check_item("targets", inputs.targets[s], V);
    if (inputs.exclude_offsets[s + 1] < inputs.exclude_offsets[s]) {
      throw Error("ERR_INVALID_ARGUMENT", "excludeOffsets must ascend.");
    }
  }
  const int32_t num_excluded = inputs.exclude_offsets[S];
  for (int32_t i = 0; i < num_excluded; ++i) check_item("excludeIds", inputs.exclude_ids[i], V);

  arena.reset();
  int32_t* excluded = arena.allocate<int32_t>(num_excluded);
  int32_t* excluded_offsets = arena.allocate<int32_t>(S + 1);
  order_exclusions(context.pool, inputs, excluded, excluded_offsets);
  if (device != nullptr && k <= V) {
    RankInputs ordered = inputs;
    ordered.exclude_ids = excluded;
    ordered.exclude_offsets = excluded_offsets;
    if (device->rank(ordered, ranks, top_k_ids, top_k_scores)) return;
  }
  const float* last = inputs.states;  // [S, d]
  if (last == nullptr) {
    float* encoded = arena.allocate<float>(S * d);
    const Gather item_vectors = [&](int64_t first, int64_t count, Context& own, Arena& own_arena) {
      float* vectors = own_arena.allocate<float>(count * d);  // [count, d]
      embedding_forward(own, batch.input_ids + first, items_.vectors(), vectors, count, d, V);
      return vectors;
    };
    last_hidden(context, arena, item_vectors, batch.sequence_offsets, S, encoded);
    last = encoded;
  }

  RankedCase* cases = arena.allocate<RankedCase>(S);
  score_targets(context, last, items_.vectors(), inputs.targets, S, d, V, cases);
  for (int64_t s = 0; s < S; ++s) {
    cases[s].num_best = 0;
    cases[s].next_excluded = excluded + excluded_offsets[s];
    cases[s].end_excluded = excluded + excluded_offsets[s + 1];
    ranks[s] = 0;
  }
  for_each_logit_block(context, last, items_.vectors(), nullptr, S, d, V,
                       [&](int64_t s, float* scores, int64_t first, int64_t count) {
                         rank_block(cases[s], scores, first, count, ranks + s);
                         BestScores best(top_k_ids + s * k, top_k_scores + s * k, k, cases[s].num_best);
                         best.add(scores, nullptr, count, static_cast<int32_t>(first));
                         cases[s].num_best = best.size();
                       });
  context.pool.parallel_for(k > 0 ? S : 0, [&](int64_t s, int) {
    BestScores best(top_k_ids + s * k, top_k_scores + s * k, k, cases[s].num_best);
    best.sort();
    std::fill(top_k_ids + s * k + best.size(), top_k_ids + (s + 1) * k, -1);
    std::fill(top_k_scores + s * k + best.size(), top_k_scores + (s + 1) * k, -std::numeric_limits<float>::infinity());
  });
}

}  // namespace limbeck
