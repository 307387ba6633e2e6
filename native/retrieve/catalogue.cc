#include "retrieve/catalogue.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"
#include "ops/gemm.h"

namespace limbeck {

namespace {

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

float inverse_length(const float* x, int64_t width) {
  double square = 0;
  for (int64_t j = 0; j < width; ++j) square += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  return square > 0 && std::isfinite(square) ? static_cast<float>(1 / std::sqrt(square)) : 0.0f;
}

/// As values.reserve(size), with room for more to come: to move all for each item added takes 0.7 ms of a million.
template <typename Values>
void reserve_more(Values& values, size_t size) {
  const size_t capacity = values.capacity();
  values.reserve(size > capacity ? std::max(size, capacity + capacity / 4) : capacity);
}

}  // namespace

Catalogue::Catalogue(std::shared_ptr<const Recommender> recommender)
    : recommender_(std::move(recommender)),
      num_base_(recommender_->num_items()),
      base_(recommender_->items()),
      tail_(recommender_->hidden_size()) {
  const int64_t d = recommender_->hidden_size();
  inverse_lengths_.resize(static_cast<size_t>(num_base_));
  for (int64_t i = 0; i < num_base_; ++i) {
    inverse_lengths_[static_cast<size_t>(i)] = inverse_length(base_.vectors() + i * d, d);
  }
  excluded_.assign(static_cast<size_t>(num_base_), 0);
}

Catalogue::Catalogue(std::shared_ptr<const Recommender> recommender, ItemTable base, ItemTable tail)
    : recommender_(std::move(recommender)),
      num_base_(recommender_->num_items()),
      base_(std::move(base)),
      tail_(std::move(tail)) {}

Catalogue Catalogue::searchable() const {
  Catalogue copy(recommender_, base_, tail_);
  copy.inverse_lengths_ = inverse_lengths_;
  copy.excluded_ = excluded_;
  copy.hidden_ = hidden_;
  copy.boosted_ = boosted_;
  copy.boosts_ = boosts_;
  copy.log_popularity_ = log_popularity_;
  return copy;
}

const float* Catalogue::vector(int32_t id) const {
  const int64_t d = recommender_->hidden_size();
  return id < num_base_ ? base_.vectors() + id * d : tail_.vectors() + (id - num_base_) * d;
}

const float* Catalogue::mean_vector() {
  if (mean_.empty()) {
    const int64_t d = recommender_->hidden_size(), N = num_items();
    std::vector<double> sum(static_cast<size_t>(d), 0.0);
    for (int64_t i = 0; i < N; ++i) {
      const float* row = vector(static_cast<int32_t>(i));
      for (int64_t j = 0; j < d; ++j) sum[static_cast<size_t>(j)] += static_cast<double>(row[j]);
    }
    for (const double value : sum) mean_.push_back(static_cast<float>(value / static_cast<double>(N)));
  }
  return mean_.data();
}

int64_t Catalogue::append(Context& context, const float* features, int64_t count) {
  const int64_t d = recommender_->hidden_size(), f = recommender_->item_feature_size(), first = num_items();
  if (f == 0) invalid("This student has no item features, so items cannot be added by text.");
  for (int64_t i = 0; i < count * f; ++i) {
    if (!std::isfinite(features[i])) invalid("Item features must be finite.");
  }
  const Arena::Scope scope(context.scratch);
  float* vectors = context.scratch.allocate<float>(count * d);  // [count, d]
  gemm(context, count, d, f, {features, f, 1}, {recommender_->item_projection(), 1, f}, nullptr, vectors, d, false);
  const auto total = static_cast<size_t>(first + count);
  const size_t tail_floats = tail_features_.size();
  // What can fail for lack of memory comes first: nothing is half done then.
  reserve_more(inverse_lengths_, total);
  reserve_more(excluded_, total);
  if (has_popularity()) reserve_more(log_popularity_, total);
  reserve_more(tail_features_, tail_floats + static_cast<size_t>(count * f));
  reserve_more(item_topics_, total);
  tail_.append(vectors, count);
  inverse_lengths_.resize(total);
  for (int64_t i = 0; i < count; ++i) {
    inverse_lengths_[static_cast<size_t>(first + i)] = inverse_length(vectors + i * d, d);
  }
  excluded_.resize(total, 0);
  if (has_popularity()) log_popularity_.resize(total, log_unseen_);
  tail_features_.insert(tail_features_.end(), features, features + count * f);
  normalise_rows(tail_features_.data() + tail_floats, count, f);
  mean_.clear();
  if (topics_.num_topics() > 0) assign_from(context, first);
  return first;
}

void Catalogue::describe(const int32_t* categories, const int32_t* offsets, const float* boosts, const int32_t* hidden,
                         int64_t count) {
  const int64_t first = categories_.num_items();
  if (first + count > num_items()) {
    invalid("Expected at most " + std::to_string(num_items() - first) + " items to describe, got " +
            std::to_string(count) + ".");
  }
  if (offsets[0] != 0) invalid("categoryOffsets must begin with 0.");
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i + 1] < offsets[i]) invalid("categoryOffsets must ascend.");
    if (!std::isfinite(boosts[i])) invalid("Boosts must be finite.");
  }
  for (int32_t i = 0; i < offsets[count]; ++i) {
    if (categories[i] < 0) invalid("Category ids must not be negative.");
  }
  for (int64_t i = 0; i < count; ++i) {
    categories_.append(categories + offsets[i], offsets[i + 1] - offsets[i]);
    if (hidden[i] != 0) hide(static_cast<int32_t>(first + i));
    if (boosts[i] != 0) {
      boosted_.push_back(static_cast<int32_t>(first + i));
      boosts_.push_back(boosts[i]);
    }
  }
}

void Catalogue::hide(int32_t id) {
  check_item("ids", id, num_items());
  uint8_t& excluded = excluded_[static_cast<size_t>(id)];
  if (excluded == 0) hidden_.push_back(id);
  excluded = 1;
}

void Catalogue::set_popularity(const float* counts, int64_t count) {
  if (count != num_items()) {
    throw Error("ERR_SHAPE_MISMATCH",
                "Expected " + std::to_string(num_items()) + " counts, one an item, got " + std::to_string(count) + ".");
  }
  double total = static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) {
    if (!(counts[i] >= 0) || !std::isfinite(counts[i])) invalid("Counts must be finite and not negative.");
    total += static_cast<double>(counts[i]);
  }
  log_popularity_.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    log_popularity_[static_cast<size_t>(i)] =
        static_cast<float>(std::log((static_cast<double>(counts[i]) + 1) / total));
  }
  log_unseen_ = static_cast<float>(std::log(1 / total));
}

void Catalogue::score_all(Context& context, const float* query, float* scores) const {
  const int64_t d = recommender_->hidden_size(), added = tail_.num_items();
  gemm(context, 1, num_base_, d, {query, d, 1}, {base_.vectors(), 1, d}, nullptr, scores, num_base_, false);
  if (added == 0) return;
  gemm(context, 1, added, d, {query, d, 1}, {tail_.vectors(), 1, d}, nullptr, scores + num_base_, added, false);
}

int64_t Catalogue::top_k(Context& context, const float* query, const uint8_t* excluded, int64_t k, int32_t* ids,
                         float* scores) {
  return add_tail(context, query, excluded, k, base_.top_k(context, query, excluded, k, ids, scores), ids, scores);
}

void Catalogue::top_k_of_batch(Context& context, const float* queries, int64_t num_queries, const int32_t* own,
                               const int32_t* own_offsets, int64_t k, int32_t* ids, float* scores, int64_t* counts) {
  const int64_t d = recommender_->hidden_size();
  base_.top_k_of_batch(context, queries, num_queries, excluded_.data(), own, own_offsets, k, ids, scores, counts);
  for (int64_t s = 0; s < num_queries; ++s) {
    if (counts[s] >= 0 && tail_.num_items() == 0) continue;
    const float* query = queries + s * d;
    counts[s] = without(own + own_offsets[s], own_offsets[s + 1] - own_offsets[s], [&] {
      if (counts[s] < 0) return top_k(context, query, excluded_.data(), k, ids + s * k, scores + s * k);
      return add_tail(context, query, excluded_.data(), k, counts[s], ids + s * k, scores + s * k);
    });
  }
}

int64_t Catalogue::add_tail(Context& context, const float* query, const uint8_t* excluded, int64_t k, int64_t found,
                            int32_t* ids, float* scores) {
  if (tail_.num_items() == 0) return found;
  const Arena::Scope scope(context.scratch);
  int32_t* tail_ids = context.scratch.allocate<int32_t>(k);
  float* tail_scores = context.scratch.allocate<float>(k);
  const int64_t more = tail_.top_k(context, query, excluded + num_base_, k, tail_ids, tail_scores);
  const int64_t total = std::min(k, found + more);
  // From the last place on, so that nothing is overwritten before it moves. Of equal scores the lower id goes first.
  int64_t from_base = 0, from_tail = 0;
  while (from_base + from_tail < total) {
    if (from_tail == more || (from_base < found && !(tail_scores[from_tail] > scores[from_base]))) {
      ++from_base;
    } else {
      ++from_tail;
    }
  }
  for (int64_t place = total - 1; from_tail > 0; --place) {
    if (from_base > 0 && tail_scores[from_tail - 1] > scores[from_base - 1]) {
      --from_base;
      ids[place] = ids[from_base];
      scores[place] = scores[from_base];
    } else {
      --from_tail;
      ids[place] = static_cast<int32_t>(num_base_ + tail_ids[from_tail]);
      scores[place] = tail_scores[from_tail];
    }
  }
  return total;
}

void Catalogue::text_cosines(Context& context, const float* features, float* cosines) const {
  const int64_t f = recommender_->item_feature_size(), added = tail_.num_items();
  if (recommender_->item_features() == nullptr) {
    invalid("This student has no item features, so it cannot be searched by text.");
  }
  const Arena::Scope scope(context.scratch);
  float* query = context.scratch.allocate<float>(f);
  std::memcpy(query, features, static_cast<size_t>(f) * sizeof(float));
  normalise_rows(query, 1, f);
  gemm(context, 1, num_base_, f, {query, f, 1}, {recommender_->item_features(), 1, f}, nullptr, cosines, num_base_,
       false);
  if (added == 0) return;
  gemm(context, 1, added, f, {query, f, 1}, {tail_features_.data(), 1, f}, nullptr, cosines + num_base_, added, false);
}

int64_t Catalogue::topic_width() const {
  return recommender_->item_features() != nullptr ? recommender_->item_feature_size() : recommender_->hidden_size();
}

std::vector<float> Catalogue::topic_rows(int64_t first) const {
  const int64_t width = topic_width();
  std::vector<float> rows;
  rows.reserve(static_cast<size_t>((num_items() - first) * width));
  if (recommender_->item_features() == nullptr) {
    if (first < num_base_) rows.assign(base_.vectors() + first * width, base_.vectors() + num_base_ * width);
    normalise_rows(rows.data(), static_cast<int64_t>(rows.size()) / width, width);
    return rows;
  }
  if (first < num_base_) {
    const float* features = recommender_->item_features();
    rows.assign(features + first * width, features + num_base_ * width);
  }
  const int64_t skipped = std::max<int64_t>(0, first - num_base_) * width;
  rows.insert(rows.end(), tail_features_.begin() + skipped, tail_features_.end());
  return rows;
}

void Catalogue::assign_from(Context& context, int64_t first) {
  const std::vector<float> rows = topic_rows(first);
  item_topics_.resize(static_cast<size_t>(num_items()));
  assign_topics(context, topics_, rows.data(), num_items() - first, item_topics_.data() + first);
}

void Catalogue::find_topics(Context& context, int64_t num_topics, uint64_t seed) {
  if (num_topics < 1) invalid("Expected at least 1 topic, got " + std::to_string(num_topics) + ".");
  const std::vector<float> rows = topic_rows(0);
  topics_ = fit_topics(context, rows.data(), num_items(), topic_width(), std::min(num_topics, num_items()), seed);
  assign_from(context, 0);
}

void Catalogue::set_topics(Context& context, const float* centroids, int64_t count) {
  const int64_t width = topic_width();
  if (count == 0 || count % width != 0) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected topics in rows of " + std::to_string(width) +
                                          " numbers, at least one, got " + std::to_string(count) + " numbers.");
  }
  Topics topics{width, std::vector<float>(centroids, centroids + count)};
  normalise_rows(topics.centroids.data(), topics.num_topics(), width);
  topics_ = std::move(topics);
  assign_from(context, 0);
}

}  // namespace limbeck
