#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/shared_vector.h"
#include "ops/context.h"
#include "retrieve/category_index.h"
#include "retrieve/item_table.h"
#include "retrieve/recommender.h"
#include "retrieve/topics.h"

namespace limbeck {

/// The items that one thread serves: those of a recommender, which it shares with others, and behind them those added
/// since, which are its own; and what is known of each. A copy sees none of the later changes of the other.
/// Letters: N items, d hidden size, f feature size.
class Catalogue {
 public:
  explicit Catalogue(std::shared_ptr<const Recommender> recommender);
  /// A copy that knows what recommendations without filters need, and no more: neither categories nor topics.
  Catalogue searchable() const;

  const Recommender& recommender() const { return *recommender_; }
  int64_t num_items() const { return num_base_ + tail_.num_items(); }
  /// e_i [d]
  const float* vector(int32_t id) const;
  /// 1 / |e_i| [N], 0 for a vector of zeros
  const float* inverse_lengths() const { return inverse_lengths_.data(); }
  /// Mean of e_i [d]; computed at the first call after a change.
  const float* mean_vector();

  /// Appends items that have features only (v = 0): e = A·u. features [count, f]; returns the id of the first.
  /// Error("ERR_INVALID_ARGUMENT") without item features, or when one is not finite.
  int64_t append(Context& context, const float* features, int64_t count);

  /// Tells the categories (lists end to end, offsets [count + 1] from 0), boosts [count] and which are hidden [count]
  /// of the next items that were not described yet.
  void describe(const int32_t* categories, const int32_t* offsets, const float* boosts, const int32_t* hidden,
                int64_t count);
  /// Items are never recommended again.
  void hide(int32_t id);
  /// counts [N], ≥ 0: how often each item was chosen; items added later count 0.
  void set_popularity(const float* counts, int64_t count);

  /// Items that the recommender was made with; those added since come behind them.
  int64_t num_base() const { return num_base_; }
  /// Hidden items, in the order in which they were hidden.
  const std::vector<int32_t>& hidden() const { return hidden_; }
  bool is_hidden(int32_t id) const { return (excluded_[static_cast<size_t>(id)] & 1) != 0; }
  /// [N] 1 = hidden. Callers may set and clear other bits for the time of a search.
  uint8_t* excluded() { return excluded_.data(); }
  /// For the time of search(), also where it throws: of a request's own items that are excluded.
  template <typename Body>
  auto without(const int32_t* ids, int64_t count, Body&& search) {
    static constexpr uint8_t kOfRequest = 2;
    struct Marks {
      uint8_t* excluded;
      const int32_t* ids;
      int64_t count;
      ~Marks() {
        for (int64_t i = 0; i < count; ++i) excluded[ids[i]] &= static_cast<uint8_t>(~kOfRequest);
      }
    };
    const Marks marks{excluded_.data(), ids, count};
    for (int64_t i = 0; i < count; ++i) excluded_[static_cast<size_t>(ids[i])] |= kOfRequest;
    return search();
  }
  const CategoryIndex& categories() const { return categories_; }
  /// Items with a boost, ascending, and their boosts.
  const std::vector<int32_t>& boosted() const { return boosted_; }
  const std::vector<float>& boosts() const { return boosts_; }
  bool has_popularity() const { return !log_popularity_.empty(); }
  /// log((count + 1) / (Σ counts + N)) [N]
  const float* log_popularity() const { return log_popularity_.data(); }

  /// scores [N] = query·e_i, the same bits as top_k() gives.
  void score_all(Context& context, const float* query, float* scores) const;
  /// As ItemTable::top_k() over all items.
  int64_t top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids, float* scores);
  /// Merges the best items added since into the best `found` of the base; returns how many there are now.
  int64_t add_tail(Context& context, const float* query, const uint8_t* excluded, int64_t k, int64_t found,
                   int32_t* ids, float* scores);
  /// As top_k() for queries [num_queries, d] at once, counts [num_queries] = how many were found; query s also leaves
  /// out own[own_offsets[s] … own_offsets[s + 1]), ascending.
  void top_k_of_batch(Context& context, const float* queries, int64_t num_queries, const int32_t* own,
                      const int32_t* own_offsets, int64_t k, int32_t* ids, float* scores, int64_t* counts);
  /// cosines [N] of the features with those of a text [f]. Error("ERR_INVALID_ARGUMENT") without item features.
  void text_cosines(Context& context, const float* features, float* cosines) const;

  /// Finds topics of the items' features, or of their vectors where there are none; num_topics is cut to N.
  void find_topics(Context& context, int64_t num_topics, uint64_t seed);
  /// Takes topics found before; centroids [num_topics, f or d].
  void set_topics(Context& context, const float* centroids, int64_t count);
  const Topics& topics() const { return topics_; }
  /// [N], empty without topics
  const std::vector<int32_t>& item_topics() const { return item_topics_; }

 private:
  Catalogue(std::shared_ptr<const Recommender> recommender, ItemTable base, ItemTable tail);
  /// Rows that topics are made of, for items first … num_items − 1, of length 1.
  std::vector<float> topic_rows(int64_t first) const;
  int64_t topic_width() const;
  void assign_from(Context& context, int64_t first);

  std::shared_ptr<const Recommender> recommender_;
  int64_t num_base_;
  ItemTable base_, tail_;
  std::vector<float> tail_features_;  // [N − num_base, f] of length 1
  SharedVector<float> inverse_lengths_;
  std::vector<float> mean_;
  std::vector<uint8_t> excluded_;
  std::vector<int32_t> hidden_;
  CategoryIndex categories_;
  std::vector<int32_t> boosted_;
  std::vector<float> boosts_;
  SharedVector<float> log_popularity_;
  float log_unseen_ = 0;  // of an item that was never chosen
  Topics topics_;
  std::vector<int32_t> item_topics_;
};

}  // namespace limbeck
