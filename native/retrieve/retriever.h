#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/context.h"
#include "retrieve/catalogue.h"
#include "retrieve/request_device.h"

namespace limbeck {

/// What a user chose, oldest first; the last max_history() count. An id −1 − j is row j of features: an item outside
/// the catalogue.
struct History {
  const int32_t* items = nullptr;
  int64_t length = 0;
  const float* features = nullptr;  // [num_features, f]
  int64_t num_features = 0;
};

/// Which items may be in an answer. Hidden ones never are.
struct Selection {
  const int32_t* exclude = nullptr;
  int64_t num_excluded = 0;
  CategoryFilter categories;
  const int32_t* candidates = nullptr;
  int64_t num_candidates = -1;  // −1 = the whole catalogue

  bool is_open() const { return num_candidates < 0 && categories.is_empty(); }
};

/// What an answer is ordered by beside the model's scores.
struct Ranking {
  const int32_t* boosted = nullptr;  // different items
  const float* boosts = nullptr;     // [num_boosts], added to their scores
  int64_t num_boosts = 0;
  float diversity = 0;  // 0 … 1, see diversify()
  float novelty = 0;    // ≥ 0, × −log popularity, added to the score
  float explore = 0;    // 0 … 1, share of the places that are sampled
  uint64_t seed = 0;

  bool is_by_score() const { return num_boosts == 0 && novelty == 0; }
  bool reranks() const { return diversity > 0 || explore > 0; }
  bool is_plain() const { return is_by_score() && !reranks(); }
};

/// Histories of items end to end, and what else their answers leave out.
struct HistoryBatch {
  const int32_t* items = nullptr;
  const int32_t* offsets = nullptr;  // [count + 1] from 0, ascending
  int64_t count = 0;
  const int32_t* exclude = nullptr;
  const int32_t* exclude_offsets = nullptr;  // [count + 1] from 0, ascending; null = nothing
  const Ranking* rankings = nullptr;         // [count]; null = one for all
  const int32_t* k = nullptr;                // [count], 1 to that of all; null = that

  History history(int64_t s) const { return {items + offsets[s], offsets[s + 1] - offsets[s]}; }
};

/// Serves one thread: a catalogue of its own, and the memory that requests work in. Once the largest request was seen
/// it allocates nothing. Not thread-safe; any number of them may share one Recommender. Answers whose states or scores
/// overflow are Error("ERR_NOT_FINITE").
class Retriever {
 public:
  /// @param device answers the plain requests that it can; null = none
  explicit Retriever(Catalogue catalogue, std::shared_ptr<RequestDevice> device = nullptr)
      : catalogue_(std::move(catalogue)), device_(std::move(device)) {}

  const Catalogue& catalogue() const { return catalogue_; }
  const Recommender& recommender() const { return catalogue_.recommender(); }
  int64_t num_items() const { return catalogue_.num_items(); }

  /// The best k items after `history`, in item_ids and scores [k]; returns how many, fewer than k when no more may be
  /// in the answer. Best first, equal scores by lower id, unless `ranking` diversifies or explores. Scores are logits
  /// with boosts and novelty added. An empty history is answered by log popularity; Error("ERR_UNKNOWN_ITEMS") without
  /// one.
  int64_t recommend(const History& history, const Selection& selection, const Ranking& ranking, int64_t k,
                    int32_t* item_ids, float* scores);

  /// The same for each history: item_ids, scores [count, k], filled up with −1 and −∞. An item of a history is not in
  /// its answer. `ranking` is for those without one of their own; its seed is that of the first, of each next one 1
  /// more. Requests without filters, boosts and novelty search the catalogue together.
  void recommend_batch(const HistoryBatch& batch, const Selection& selection, const Ranking& ranking, int64_t k,
                       int32_t* item_ids, float* scores);

  /// The items with the largest cosine between their vectors and that of `item`, which is left out.
  int64_t similar(int32_t item, const Selection& selection, int64_t k, int32_t* item_ids, float* scores);

  /// Items by their features' cosine with those of a text [f], in standard deviations over the items that may be in the
  /// answer; `history`, unless empty, adds 0.3 × the model's scores, in standard deviations, too.
  int64_t search(const float* text_features, const History& history, const Selection& selection, int64_t k,
                 int32_t* item_ids, float* scores);

  /// Share of the next choice's probability (softmax of the scores of items that are not hidden) that falls to each
  /// topic: weights [num_topics] = . An empty history as in recommend(). Error("ERR_INVALID_ARGUMENT") without topics.
  void interests(const History& history, float* weights);

  /// topics [count] = the topic of each text, by its features [count, f]. Error("ERR_INVALID_ARGUMENT") without topics
  /// or without item features.
  void topics_of(const float* features, int64_t count, int32_t* topics);

  /// By how much the scores of `items` would fall, against the mean item, without each entry of the history (leave one
  /// out): weights [num_items, history.length] = . The last 50 entries are told, others get 0; of a history of one
  /// entry, all that the items score above the mean.
  void explain(const History& history, const int32_t* items, int64_t num_items, float* weights);

  int64_t add_items(const float* features, int64_t count);
  void describe(const int32_t* categories, const int32_t* offsets, const float* boosts, const int32_t* hidden,
                int64_t count) {
    catalogue_.describe(categories, offsets, boosts, hidden, count);
  }
  void hide(int32_t id) { catalogue_.hide(id); }
  void set_popularity(const float* counts, int64_t count) { catalogue_.set_popularity(counts, count); }
  void find_topics(int64_t num_topics, uint64_t seed);
  void set_topics(const float* centroids, int64_t count);

 private:
  /// Items that may be in an answer: those whose `excluded` byte is 0; when they are few, also listed, ascending.
  struct Eligible {
    uint8_t* excluded;  // [N]
    int32_t* ids;       // null when not listed
    int64_t count;      // of ids
  };
  /// The best items of a search, best first.
  struct Pool {
    int32_t* ids;
    float* scores;
    int64_t count;
  };

  /// A request of a batch.
  struct BatchRow {
    int64_t place;
    Ranking ranking;
    int64_t k;
  };

  void begin() { arena_.reset(); }
  /// How many of the best items an answer is made of.
  int64_t pool_size(const Ranking& ranking, int64_t k) const;
  bool is_only_search(const Selection& selection, const Ranking& ranking) const;
  bool is_for_device(const History& history, const Selection& selection, int64_t k) const;
  int64_t recommend_on_device(Context& context, const History& history, const Selection& selection, int64_t k,
                              int32_t* item_ids, float* scores);
  void search_together(const HistoryBatch& batch, const std::vector<BatchRow>& rows, const Selection& selection,
                       int64_t width, int32_t* item_ids, float* scores, int64_t* counts);
  void check(const History& history) const;
  void check(const Selection& selection) const;
  void check(const Ranking& ranking) const;
  /// Error("ERR_UNKNOWN_ITEMS") for an empty history when popularity is unknown.
  void check_answerable(const History& history) const;
  /// scores [N]; without a query, log popularity.
  void score_all(Context& context, const float* query, float* scores) const;
  /// Rows e of the last entries of a history, [length, d]; length is cut to the model's.
  const float* history_vectors(Context& context, const History& history, int64_t* length);
  /// The state after the history [d].
  const float* encode(Context& context, const History& history);
  Eligible select(const Selection& selection);
  Pool best(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking, int64_t size);
  void best_of_listed(Context& context, const float* query, const Eligible& eligible, Pool& pool, int64_t size);
  void best_of_all(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking, Pool& pool,
                   int64_t size);
  void best_with_boosts(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking,
                        Pool& pool, int64_t size);
  /// The boost of the catalogue and of the request for each item that has one.
  int64_t merge_boosts(const Ranking& ranking, int32_t* ids, float* boosts) const;
  int64_t rerank(Context& context, const Pool& pool, const Ranking& ranking, int64_t k, int32_t* item_ids,
                 float* scores);

  Catalogue catalogue_;
  std::shared_ptr<RequestDevice> device_;
  ThreadPool pool_{1};  // has no thread but the caller's
  Arena arena_;
};

}  // namespace limbeck
