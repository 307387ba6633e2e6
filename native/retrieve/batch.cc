#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "retrieve/retriever.h"

namespace limbeck {
namespace {

// Histories that are encoded before the catalogue is searched for all of them.
constexpr int64_t kHistoriesAtOnce = 168;

bool has_empty(const int32_t* offsets, int64_t num_histories) {
  return std::adjacent_find(offsets, offsets + num_histories + 1) != offsets + num_histories + 1;
}

}  // namespace

/// counts [num_histories] = how many items each answer has; no history is empty.
void Retriever::search_together(const int32_t* items, const int32_t* offsets, int64_t num_histories,
                                const Selection& selection, int64_t k, int32_t* item_ids, float* scores,
                                int64_t* counts) {
  const int64_t d = recommender().hidden_size();
  begin();
  Context context{pool_, arena_};
  float* queries = arena_.allocate<float>(num_histories * d);  // [num_histories, d]
  std::vector<int32_t> own, own_offsets{0};                    // what each leaves out, ascending
  for (int64_t s = 0; s < num_histories; ++s) {
    const History history{items + offsets[s], offsets[s + 1] - offsets[s]};
    check(history);
    const Arena::Scope scope(arena_);
    std::memcpy(queries + s * d, encode(context, history), static_cast<size_t>(d) * sizeof(float));
    own.insert(own.end(), selection.exclude, selection.exclude + selection.num_excluded);
    own.insert(own.end(), history.items, history.items + history.length);
    std::sort(own.begin() + own_offsets.back(), own.end());
    own_offsets.push_back(static_cast<int32_t>(own.size()));
  }
  catalogue_.top_k_of_batch(context, queries, num_histories, own.data(), own_offsets.data(), k, item_ids, scores,
                            counts);
}

void Retriever::recommend_batch(const int32_t* items, const int32_t* offsets, int64_t num_histories,
                                const Selection& selection, const Ranking& ranking, int64_t k, int32_t* item_ids,
                                float* scores) {
  check(selection);
  std::vector<int64_t> counts(static_cast<size_t>(num_histories));
  if (is_only_search(selection, ranking) && k <= num_items() && !has_empty(offsets, num_histories)) {
    for (int64_t s = 0; s < num_histories; s += kHistoriesAtOnce) {
      search_together(items, offsets + s, std::min(kHistoriesAtOnce, num_histories - s), selection, k, item_ids + s * k,
                      scores + s * k, counts.data() + s);
    }
  } else {
    Selection own = selection;
    Ranking seeded = ranking;
    std::vector<int32_t> exclude;
    for (int64_t s = 0; s < num_histories; ++s, ++seeded.seed) {
      const History history{items + offsets[s], offsets[s + 1] - offsets[s]};
      exclude.assign(selection.exclude, selection.exclude + selection.num_excluded);
      exclude.insert(exclude.end(), history.items, history.items + history.length);
      own.exclude = exclude.data();
      own.num_excluded = static_cast<int64_t>(exclude.size());
      counts[static_cast<size_t>(s)] = recommend(history, own, seeded, k, item_ids + s * k, scores + s * k);
    }
  }
  for (int64_t s = 0; s < num_histories; ++s) {
    const int64_t found = counts[static_cast<size_t>(s)];
    std::fill(item_ids + s * k + found, item_ids + (s + 1) * k, -1);
    std::fill(scores + s * k + found, scores + (s + 1) * k, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace limbeck
