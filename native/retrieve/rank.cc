#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"
#include "cpu/kernels.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/logit_blocks.h"
#include "ops/top_k.h"
#include "retrieve/recommender.h"

namespace limbeck {
namespace {

constexpr int64_t kCasesAtOnce = 28;

/// A case while the catalogue goes by.
struct RankedCase {
  float target_score;
  int64_t num_best;                             // of the best items so far
  const int32_t *next_excluded, *end_excluded;  // ascending; the target is not among them
};

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

}  // namespace

void Recommender::rank(Context& context, Arena& arena, const RankInputs& inputs, int32_t* ranks, int32_t* top_k_ids,
                       float* top_k_scores) const {
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

  const int num_threads = context.pool.num_threads();
  const int64_t num_tasks = std::max<int64_t>((S + kCasesAtOnce - 1) / kCasesAtOnce, std::min<int64_t>(S, num_threads));
  ThreadPool alone(1);
  std::vector<Arena> scratch(static_cast<size_t>(num_threads));
  const auto for_cases = [&](auto&& run) {
    context.pool.parallel_for(num_tasks, [&](int64_t task, int worker) {
      Context own{alone, scratch[static_cast<size_t>(worker)], context.precision};
      const Arena::Scope scope(own.scratch);
      const int64_t begin = S * task / num_tasks;
      run(own, begin, S * (task + 1) / num_tasks - begin);
    });
  };

  RankedCase* cases = arena.allocate<RankedCase>(S);
  int32_t* excluded = arena.allocate<int32_t>(num_excluded);
  std::copy(inputs.exclude_ids, inputs.exclude_ids + num_excluded, excluded);
  for_cases([&](Context& own, int64_t begin, int64_t count) {
    float* vectors = own.scratch.allocate<float>(count * d);     // [count, d] of the targets
    float* scores = own.scratch.allocate<float>(count * count);  // [count, count]
    embedding_forward(own, inputs.targets + begin, items_.vectors(), vectors, count, d, V);
    gemm_packed(own, count, 0, count, {last + begin * d, d, 1},
                PackedMatrix(own, own.scratch, {vectors, 1, d}, d, count), nullptr, scores, count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t s = begin + i;
      int32_t *first = excluded + inputs.exclude_offsets[s], *end = excluded + inputs.exclude_offsets[s + 1];
      std::sort(first, end);
      end = std::remove(first, std::unique(first, end), inputs.targets[s]);
      cases[s] = {scores[i * count + i], 0, first, end};
      ranks[s] = 0;
    }
  });
  for_each_logit_block(context, last, items_.vectors(), nullptr, S, d, V,
                       [&](int64_t s, float* scores, int64_t first, int64_t count) {
                         rank_block(cases[s], scores, first, count, ranks + s);
                         BestScores best(top_k_ids + s * k, top_k_scores + s * k, k, cases[s].num_best);
                         best.add(scores, nullptr, count, static_cast<int32_t>(first));
                         cases[s].num_best = best.size();
                       });
  for (int64_t s = 0; s < S && k > 0; ++s) {
    BestScores best(top_k_ids + s * k, top_k_scores + s * k, k, cases[s].num_best);
    best.sort();
    std::fill(top_k_ids + s * k + best.size(), top_k_ids + (s + 1) * k, -1);
    std::fill(top_k_scores + s * k + best.size(), top_k_scores + (s + 1) * k, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace limbeck
