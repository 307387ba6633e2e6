#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "retrieve/retriever.h"

namespace limbeck {
namespace {

// Histories that are encoded before the catalogue is searched for all of them.
constexpr int64_t kHistoriesAtOnce = 168;

bool has_empty(const HistoryBatch& batch) {
  const int32_t* end = batch.offsets + batch.count + 1;
  return std::adjacent_find(batch.offsets, end) != end;
}

/// Appends what history s leaves out: what all do, its own items, and its own exclusions.
void append_excluded(const HistoryBatch& batch, int64_t s, const Selection& selection, std::vector<int32_t>& ids) {
  const History history = batch.history(s);
  ids.insert(ids.end(), selection.exclude, selection.exclude + selection.num_excluded);
  ids.insert(ids.end(), history.items, history.items + history.length);
  if (batch.exclude_offsets == nullptr) return;
  ids.insert(ids.end(), batch.exclude + batch.exclude_offsets[s], batch.exclude + batch.exclude_offsets[s + 1]);
}

}  // namespace

/// counts [count] = how many items each answer has; no history is empty. item_ids, scores [count, k]
void Retriever::search_together(const HistoryBatch& batch, int64_t first, int64_t count, const Selection& selection,
                                int64_t k, int32_t* item_ids, float* scores, int64_t* counts) {
  const int64_t d = recommender().hidden_size();
  begin();
  Context context{pool_, arena_};
  float* queries = arena_.allocate<float>(count * d);      // [count, d]
  int32_t* offsets = arena_.allocate<int32_t>(count + 1);  // of what the model reads of each history
  std::vector<int32_t> read;                               // end to end
  std::vector<int32_t> own, own_offsets{0};                // what each leaves out, ascending
  offsets[0] = 0;
  for (int64_t s = 0; s < count; ++s) {
    const History history = batch.history(first + s);
    check(history);
    const int32_t* end = history.items + history.length;
    read.insert(read.end(), end - std::min(history.length, recommender().max_history()), end);
    offsets[s + 1] = static_cast<int32_t>(read.size());
    append_excluded(batch, first + s, selection, own);
    std::sort(own.begin() + own_offsets.back(), own.end());
    own_offsets.push_back(static_cast<int32_t>(own.size()));
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
  catalogue_.top_k_of_batch(context, queries, count, own.data(), own_offsets.data(), k, item_ids, scores, counts);
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
  std::vector<int64_t> counts(static_cast<size_t>(batch.count));
  if (is_only_search(selection, ranking) && k <= num_items() && !has_empty(batch)) {
    for (int64_t s = 0; s < batch.count; s += kHistoriesAtOnce) {
      search_together(batch, s, std::min(kHistoriesAtOnce, batch.count - s), selection, k, item_ids + s * k,
                      scores + s * k, counts.data() + s);
    }
  } else {
    Selection own = selection;
    Ranking seeded = ranking;
    std::vector<int32_t> exclude;
    for (int64_t s = 0; s < batch.count; ++s, ++seeded.seed) {
      exclude.clear();
      append_excluded(batch, s, selection, exclude);
      own.exclude = exclude.data();
      own.num_excluded = static_cast<int64_t>(exclude.size());
      counts[static_cast<size_t>(s)] = recommend(batch.history(s), own, seeded, k, item_ids + s * k, scores + s * k);
    }
  }
  for (int64_t s = 0; s < batch.count; ++s) {
    const int64_t found = counts[static_cast<size_t>(s)];
    std::fill(item_ids + s * k + found, item_ids + (s + 1) * k, -1);
    std::fill(scores + s * k + found, scores + (s + 1) * k, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace limbeck
