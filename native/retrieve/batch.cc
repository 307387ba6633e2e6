#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "retrieve/retriever.h"

namespace limbeck {
namespace {

// Histories that are encoded before the catalogue is searched for all of them.
constexpr int64_t kHistoriesAtOnce = 168;

/// Appends what history s leaves out: what all do, its own items, and its own exclusions.
void append_excluded(const HistoryBatch& batch, int64_t s, const Selection& selection, std::vector<int32_t>& ids) {
  const History history = batch.history(s);
  ids.insert(ids.end(), selection.exclude, selection.exclude + selection.num_excluded);
  ids.insert(ids.end(), history.items, history.items + history.length);
  if (batch.exclude_offsets == nullptr) return;
  ids.insert(ids.end(), batch.exclude + batch.exclude_offsets[s], batch.exclude + batch.exclude_offsets[s + 1]);
}

}  // namespace

/// Of requests by score whose histories are not empty. item_ids, scores [batch.count, width]; counts [batch.count] =
/// how many items each answer has
void Retriever::search_together(const HistoryBatch& batch, const std::vector<BatchRow>& rows,
                                const Selection& selection, int64_t width, int32_t* item_ids, float* scores,
                                int64_t* counts) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t d = recommender().hidden_size();
  begin();
  Context context{pool_, arena_};
  float* queries = arena_.allocate<float>(count * d);      // [count, d]
  int32_t* offsets = arena_.allocate<int32_t>(count + 1);  // of what the model reads of each history
  std::vector<int32_t> read;                               // end to end
  std::vector<int32_t> own, own_offsets{0};                // what each leaves out, ascending
  int64_t size = 0;                                        // of the largest pool
  offsets[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto& [place, ranking, k] = rows[static_cast<size_t>(i)];
    const History history = batch.history(place);
    check(history);
    check(ranking);
    const int32_t* end = history.items + history.length;
    read.insert(read.end(), end - std::min(history.length, recommender().max_history()), end);
    offsets[i + 1] = static_cast<int32_t>(read.size());
    append_excluded(batch, place, selection, own);
    std::sort(own.begin() + own_offsets.back(), own.end());
    own_offsets.push_back(static_cast<int32_t>(own.size()));
    size = std::max(size, pool_size(ranking, k));
  }
  const auto gather = [&](int64_t token, int64_t num_tokens, Context&, Arena& arena) {
    float* vectors = arena.allocate<float>(num_tokens * d);  // [num_tokens, d]
    for (int64_t i = 0; i < num_tokens; ++i) {
      std::memcpy(vectors + i * d, catalogue_.vector(read[static_cast<size_t>(token + i)]),
                  static_cast<size_t>(d) * sizeof(float));
    }
    return vectors;
  };
  recommender().last_hidden(context, arena_, gather, offsets, count, queries);
  int32_t* best_ids = arena_.allocate<int32_t>(count * size);  // [count, size]
  float* best_scores = arena_.allocate<float>(count * size);   // [count, size]
  int64_t* found = arena_.allocate<int64_t>(count);
  catalogue_.top_k_of_batch(context, queries, count, own.data(), own_offsets.data(), size, best_ids, best_scores,
                            found);
  for (int64_t i = 0; i < count; ++i) {
    const auto& [place, ranking, k] = rows[static_cast<size_t>(i)];
    const Arena::Scope scope(arena_);
    const Pool pool{best_ids + i * size, best_scores + i * size, std::min(found[i], pool_size(ranking, k))};
    counts[place] = rerank(context, pool, ranking, k, item_ids + place * width, scores + place * width);
  }
}

void Retriever::recommend_batch(const HistoryBatch& batch, const Selection& selection, const Ranking& ranking,
                                int64_t k, int32_t* item_ids, float* scores) {
  check(selection);
  if (batch.exclude_offsets != nullptr) {
    Selection own;
    own.exclude = batch.exclude;
    own.num_excluded = batch.exclude_offsets[batch.count];
    check(own);
  }
  const bool is_open = selection.is_open() && catalogue_.boosted().empty();
  std::vector<int64_t> counts(static_cast<size_t>(batch.count));
  std::vector<BatchRow> together;
  std::vector<int32_t> exclude;
  for (int64_t s = 0; s < batch.count; ++s) {
    BatchRow row{s, ranking, batch.k == nullptr ? k : batch.k[s]};
    row.ranking.seed += static_cast<uint64_t>(s);
    if (batch.rankings != nullptr) row.ranking = batch.rankings[s];
    if (is_open && row.ranking.is_by_score() && row.k <= num_items() && batch.history(s).length > 0) {
      together.push_back(row);
      if (static_cast<int64_t>(together.size()) < kHistoriesAtOnce) continue;
      search_together(batch, together, selection, k, item_ids, scores, counts.data());
      together.clear();
      continue;
    }
    exclude.clear();
    append_excluded(batch, s, selection, exclude);
    Selection own = selection;
    own.exclude = exclude.data();
    own.num_excluded = static_cast<int64_t>(exclude.size());
    counts[static_cast<size_t>(s)] =
        recommend(batch.history(s), own, row.ranking, row.k, item_ids + s * k, scores + s * k);
  }
  if (!together.empty()) search_together(batch, together, selection, k, item_ids, scores, counts.data());
  for (int64_t s = 0; s < batch.count; ++s) {
    const int64_t found = counts[static_cast<size_t>(s)];
    std::fill(item_ids + s * k + found, item_ids + (s + 1) * k, -1);
    std::fill(scores + s * k + found, scores + (s + 1) * k, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace limbeck
