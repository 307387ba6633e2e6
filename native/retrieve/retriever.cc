#include "retrieve/retriever.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "core/error.h"
#include "ops/gemm.h"
#include "ops/top_k.h"
#include "retrieve/rerank.h"

namespace limbeck {

namespace {

// When at most one in 6 items may be in the answer, scoring those alone is faster than a search of the table.
constexpr int64_t kItemsPerListed = 6;
// Vectors of listed items are copied together and scored this many at a time.
constexpr int64_t kListedAtOnce = 64;
// What diversity and exploration choose from: 5 k items, at least 100.
constexpr int64_t kPoolPerPlace = 5, kSmallestPool = 100;
// Beside the text, which counts 1.
constexpr float kTasteInSearch = 0.3f;
constexpr int64_t kMostExplained = 50;
// Scores beyond it would overflow what reranking computes.
constexpr float kLargestScore = 1e30f;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_share(const char* what, float value) {
  if (!(value >= 0 && value <= 1)) invalid("Expected " + std::string(what) + " from 0 to 1.");
}

/// The number of items found, if their scores are finite.
int64_t checked(int64_t found, const float* scores) {
  check_finite("Scores, with the boosts,", scores, found);
  return found;
}

/// 8 bytes, nonzero where the bit is set.
uint64_t spread_bits(uint64_t bits) { return (bits & 0xFF) * 0x0101010101010101u & 0x8040201008040201u; }

/// Scales the values of eligible items to mean 0 and variance 1, and adds `weight` times them to sums.
void add_standardised(const float* values, const uint8_t* excluded, int64_t count, float weight, float* sums) {
  double sum = 0, square = 0;
  int64_t num_eligible = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (excluded[i] != 0) continue;
    const auto value = static_cast<double>(values[i]);
    sum += value;
    square += value * value;
    ++num_eligible;
  }
  if (num_eligible == 0) return;
  const double mean = sum / static_cast<double>(num_eligible);
  const double variance = square / static_cast<double>(num_eligible) - mean * mean;
  const double scale = variance > 1e-20 ? static_cast<double>(weight) / std::sqrt(variance) : 0;
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<float>((static_cast<double>(values[i]) - mean) * scale);
}

}  // namespace

void Retriever::check(const History& history) const {
  if (history.num_features > 0 && recommender().item_feature_size() == 0) {
    invalid("This student has no item features, so it knows no items by text.");
  }
  for (int64_t i = 0; i < history.length; ++i) {
    if (history.items[i] < -history.num_features || history.items[i] >= 0) {
      check_item("history", history.items[i], num_items());
    }
  }
}

void Retriever::check(const Selection& selection) const {
  for (int64_t i = 0; i < selection.num_excluded; ++i) check_item("exclude", selection.exclude[i], num_items());
  for (int64_t i = 0; i < selection.num_candidates; ++i) check_item("candidates", selection.candidates[i], num_items());
  if (!selection.categories.is_empty() && catalogue_.categories().num_items() != num_items()) {
    invalid("Items were not described, so they cannot be filtered by category.");
  }
}

void Retriever::check(const Ranking& ranking) const {
  for (int64_t i = 0; i < ranking.num_boosts; ++i) {
    check_item("boosts", ranking.boosted[i], num_items());
    if (!std::isfinite(ranking.boosts[i])) invalid("Boosts must be finite.");
  }
  check_share("diversity", ranking.diversity);
  check_share("explore", ranking.explore);
  if (!(ranking.novelty >= 0) || !std::isfinite(ranking.novelty)) invalid("Expected novelty of at least 0.");
  if (ranking.novelty > 0 && !catalogue_.has_popularity()) {
    invalid("This student was made without the popularity of its items, which novelty needs.");
  }
}

void Retriever::check_answerable(const History& history) const {
  if (history.length > 0 || catalogue_.has_popularity()) return;
  throw Error("ERR_UNKNOWN_ITEMS",
              "This student was made without the popularity of its items, so it has no answer to an empty history.");
}

void Retriever::score_all(Context& context, const float* query, float* scores) const {
  if (query != nullptr) return catalogue_.score_all(context, query, scores);
  std::memcpy(scores, catalogue_.log_popularity(), static_cast<size_t>(num_items()) * sizeof(float));
}

const float* Retriever::history_vectors(Context& context, const History& history, int64_t* length) {
  const int64_t d = recommender().hidden_size(), f = recommender().item_feature_size();
  *length = std::min(history.length, recommender().max_history());
  const int32_t* items = history.items + history.length - *length;
  float* vectors = arena_.allocate<float>(*length * d);  // [length, d]
  for (int64_t i = 0; i < *length; ++i) {
    if (items[i] >= 0) {
      std::memcpy(vectors + i * d, catalogue_.vector(items[i]), static_cast<size_t>(d) * sizeof(float));
    } else {
      gemm(context, 1, d, f, {history.features + (-1 - int64_t{items[i]}) * f, f, 1},
           {recommender().item_projection(), 1, f}, nullptr, vectors + i * d, d, false);
    }
  }
  return vectors;
}

const float* Retriever::encode(Context& context, const History& history) {
  int64_t length = 0;
  const float* vectors = history_vectors(context, history, &length);
  const float* last = recommender().last_hidden(context, arena_, vectors, length);
  check_finite("States", last, recommender().hidden_size());
  return last;
}

Retriever::Eligible Retriever::select(const Selection& selection) {
  const int64_t N = num_items(), words = (N + 63) / 64;
  const uint8_t* hidden = catalogue_.excluded();
  Eligible eligible{arena_.allocate<uint8_t>(N), nullptr, 0};
  uint8_t* excluded = eligible.excluded;
  uint64_t* bits = nullptr;
  int64_t num_selected = N;
  if (selection.categories.is_empty()) {
    std::memcpy(excluded, hidden, static_cast<size_t>(N));
  } else {
    bits = arena_.allocate<uint64_t>(words);
    catalogue_.categories().select(selection.categories, bits, arena_.allocate<uint64_t>(words));
    num_selected = 0;
    int64_t item = 0;
    for (int64_t w = 0; w < words; ++w) {
      num_selected += __builtin_popcountll(bits[w]);
      uint64_t others = ~bits[w];
      for (; item + 8 <= N && item < (w + 1) * 64; item += 8, others >>= 8) {
        uint64_t bytes;
        std::memcpy(&bytes, hidden + item, sizeof bytes);
        bytes |= spread_bits(others);
        std::memcpy(excluded + item, &bytes, sizeof bytes);
      }
      for (; item < N && item < (w + 1) * 64; ++item, others >>= 1) {
        excluded[item] = static_cast<uint8_t>(hidden[item] | (others & 1));
      }
    }
  }
  for (int64_t i = 0; i < selection.num_excluded; ++i) excluded[selection.exclude[i]] = 1;

  if (selection.num_candidates >= 0) {
    eligible.ids = arena_.allocate<int32_t>(selection.num_candidates);
    for (int64_t i = 0; i < selection.num_candidates; ++i) {
      const int32_t id = selection.candidates[i];
      if (excluded[id] != 0) continue;
      excluded[id] = 1;  // each once
      eligible.ids[eligible.count++] = id;
    }
    std::memset(excluded, 1, static_cast<size_t>(N));
    for (int64_t i = 0; i < eligible.count; ++i) excluded[eligible.ids[i]] = 0;
    std::sort(eligible.ids, eligible.ids + eligible.count);
  } else if (num_selected * kItemsPerListed <= N) {
    eligible.ids = arena_.allocate<int32_t>(num_selected);
    for (int64_t w = 0; w < words; ++w) {
      for (uint64_t left = bits[w]; left != 0; left &= left - 1) {
        const auto id = static_cast<int32_t>(w * 64 + __builtin_ctzll(left));
        if (excluded[id] == 0) eligible.ids[eligible.count++] = id;
      }
    }
  }
  return eligible;
}

int64_t Retriever::merge_boosts(const Ranking& ranking, int32_t* ids, float* boosts) const {
  const std::vector<int32_t>& known = catalogue_.boosted();
  std::copy(known.begin(), known.end(), ids);
  std::copy(catalogue_.boosts().begin(), catalogue_.boosts().end(), boosts);
  auto count = static_cast<int64_t>(known.size());
  for (int64_t i = 0; i < ranking.num_boosts; ++i) {
    const auto place = std::lower_bound(known.begin(), known.end(), ranking.boosted[i]);
    if (place != known.end() && *place == ranking.boosted[i]) {
      boosts[place - known.begin()] += ranking.boosts[i];
    } else {
      ids[count] = ranking.boosted[i];
      boosts[count++] = ranking.boosts[i];
    }
  }
  return count;
}

/// Scores the listed items alone, with the function that scores all of them, so the same bits.
void Retriever::best_of_listed(Context& context, const float* query, const Eligible& eligible, Pool& pool,
                               int64_t size) {
  const int64_t d = recommender().hidden_size();
  float* scores = arena_.allocate<float>(eligible.count);
  float* vectors = arena_.allocate<float>(kListedAtOnce * d);  // [kListedAtOnce, d]
  for (int64_t begin = 0; begin < eligible.count; begin += kListedAtOnce) {
    const int64_t count = std::min(kListedAtOnce, eligible.count - begin);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(vectors + i * d, catalogue_.vector(eligible.ids[begin + i]), static_cast<size_t>(d) * sizeof(float));
    }
    gemm(context, 1, count, d, {query, d, 1}, {vectors, 1, d}, nullptr, scores + begin, count, false);
  }
  pool.count = top_k(scores, nullptr, eligible.count, size, pool.ids, pool.scores);
  for (int64_t i = 0; i < pool.count; ++i) pool.ids[i] = eligible.ids[pool.ids[i]];
}

void Retriever::best_of_all(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking,
                            Pool& pool, int64_t size) {
  const int64_t N = num_items();
  float* scores = arena_.allocate<float>(N);
  score_all(context, query, scores);
  if (ranking.novelty > 0) {
    const float* log_popularity = catalogue_.log_popularity();
    for (int64_t i = 0; i < N; ++i) scores[i] -= ranking.novelty * log_popularity[i];
  }
  const std::vector<int32_t>& boosted = catalogue_.boosted();
  for (size_t i = 0; i < boosted.size(); ++i) scores[boosted[i]] += catalogue_.boosts()[i];
  for (int64_t i = 0; i < ranking.num_boosts; ++i) scores[ranking.boosted[i]] += ranking.boosts[i];
  pool.count = top_k(scores, eligible.excluded, N, size, pool.ids, pool.scores);
}

/// The order of items without a boost does not change: the best of them, and those with one, are all that can win.
void Retriever::best_with_boosts(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking,
                                 Pool& pool, int64_t size) {
  struct Scored {
    float score;
    int32_t id;
  };
  const int64_t d = recommender().hidden_size();
  const int64_t most = static_cast<int64_t>(catalogue_.boosted().size()) + ranking.num_boosts;
  int32_t* ids = arena_.allocate<int32_t>(most);
  float* boosts = arena_.allocate<float>(most);
  Scored* all = arena_.allocate<Scored>(most + size);
  const int64_t num_boosted = merge_boosts(ranking, ids, boosts);
  int64_t count = 0;
  for (int64_t i = 0; i < num_boosted; ++i) {
    uint8_t& excluded = eligible.excluded[ids[i]];
    if (excluded != 0) continue;
    excluded = 1;
    float score;
    gemm(context, 1, 1, d, {query, d, 1}, {catalogue_.vector(ids[i]), 1, d}, nullptr, &score, 1, false);
    all[count++] = {score + boosts[i], ids[i]};
  }
  const int64_t found = catalogue_.top_k(context, query, eligible.excluded, size, pool.ids, pool.scores);
  for (int64_t i = 0; i < found; ++i) all[count++] = {pool.scores[i], pool.ids[i]};
  pool.count = std::min(size, count);
  std::partial_sort(all, all + pool.count, all + count, [](const Scored& a, const Scored& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  });
  for (int64_t i = 0; i < pool.count; ++i) {
    pool.ids[i] = all[i].id;
    pool.scores[i] = all[i].score;
  }
}

int64_t Retriever::pool_size(const Ranking& ranking, int64_t k) const {
  return ranking.reranks() ? std::min(num_items(), std::max(kPoolPerPlace * k, kSmallestPool)) : k;
}

Retriever::Pool Retriever::best(Context& context, const float* query, const Eligible& eligible, const Ranking& ranking,
                                int64_t size) {
  Pool pool{arena_.allocate<int32_t>(size), arena_.allocate<float>(size), 0};
  const int64_t num_boosts = static_cast<int64_t>(catalogue_.boosted().size()) + ranking.num_boosts;
  if (query == nullptr || ranking.novelty > 0 || num_boosts * 4 > num_items()) {
    best_of_all(context, query, eligible, ranking, pool, size);
  } else if (num_boosts > 0) {
    best_with_boosts(context, query, eligible, ranking, pool, size);
  } else if (eligible.ids != nullptr) {
    best_of_listed(context, query, eligible, pool, size);
  } else {
    pool.count = catalogue_.top_k(context, query, eligible.excluded, size, pool.ids, pool.scores);
  }
  return pool;
}

int64_t Retriever::rerank(Context& context, const Pool& pool, const Ranking& ranking, int64_t k, int32_t* item_ids,
                          float* scores) {
  const int64_t count = std::min(k, pool.count), d = recommender().hidden_size();
  if (count == 0) return 0;
  if (!ranking.reranks()) {
    std::copy(pool.ids, pool.ids + count, item_ids);
    std::copy(pool.scores, pool.scores + count, scores);
    return checked(count, scores);
  }
  int32_t* order = arena_.allocate<int32_t>(count);    // places in the pool
  float* finite = arena_.allocate<float>(pool.count);  // scores that can be computed with
  for (int64_t i = 0; i < pool.count; ++i) {
    const float score = pool.scores[i];
    finite[i] = std::isnan(score) ? -kLargestScore : std::clamp(score, -kLargestScore, kLargestScore);
  }
  if (ranking.diversity > 0) {
    float* vectors = arena_.allocate<float>(pool.count * d);  // [pool, d] of length 1
    for (int64_t i = 0; i < pool.count; ++i) {
      const float* vector = catalogue_.vector(pool.ids[i]);
      const float scale = catalogue_.inverse_lengths()[pool.ids[i]];
      for (int64_t j = 0; j < d; ++j) vectors[i * d + j] = vector[j] * scale;
    }
    diversify(context, vectors, finite, pool.count, d, ranking.diversity, count, order);
  } else {
    std::iota(order, order + count, 0);
  }
  if (ranking.explore > 0) {
    const int64_t num_explored = explored_places(ranking.explore, count, ranking.seed);
    explore(context, finite, pool.count, num_explored, ranking.seed, count, order);
  }
  for (int64_t i = 0; i < count; ++i) {
    item_ids[i] = pool.ids[order[i]];
    scores[i] = pool.scores[order[i]];
  }
  return checked(count, scores);
}

/// Whether an answer is the best items by score, but for those that are excluded by id.
bool Retriever::is_only_search(const Selection& selection, const Ranking& ranking) const {
  return selection.is_open() && ranking.is_plain() && catalogue_.boosted().empty();
}

/// Items added since, and texts, are unknown to the device.
bool Retriever::is_for_device(const History& history, const Selection& selection, int64_t k) const {
  if (device_ == nullptr || history.length == 0 || k > device_->max_items()) return false;
  const auto num_hidden = static_cast<int64_t>(catalogue_.hidden().size());
  if (selection.num_excluded + num_hidden > device_->max_items()) return false;
  const int64_t length = std::min(history.length, recommender().max_history());
  const int32_t* end = history.items + history.length;
  const auto is_base = [&](int32_t id) { return id >= 0 && id < catalogue_.num_base(); };
  return std::all_of(end - length, end, is_base) && device_->is_ready();
}

int64_t Retriever::recommend_on_device(Context& context, const History& history, const Selection& selection, int64_t k,
                                       int32_t* item_ids, float* scores) {
  const std::vector<int32_t>& hidden = catalogue_.hidden();
  const int64_t length = std::min(history.length, recommender().max_history());
  int32_t* left_out = arena_.allocate<int32_t>(selection.num_excluded + static_cast<int64_t>(hidden.size()));
  int64_t num_left_out = 0;
  const auto leave_out = [&](int32_t id) {
    if (id < catalogue_.num_base()) left_out[num_left_out++] = id;
  };
  std::for_each(selection.exclude, selection.exclude + selection.num_excluded, leave_out);
  std::for_each(hidden.begin(), hidden.end(), leave_out);
  const int64_t found =
      device_->recommend(history.items + history.length - length, length, left_out, num_left_out, k, item_ids, scores);
  if (num_items() == catalogue_.num_base()) return checked(found, scores);
  const float* query = encode(context, history);
  const int64_t count = catalogue_.without(selection.exclude, selection.num_excluded, [&] {
    return catalogue_.add_tail(context, query, catalogue_.excluded(), k, found, item_ids, scores);
  });
  return checked(count, scores);
}

int64_t Retriever::recommend(const History& history, const Selection& selection, const Ranking& ranking, int64_t k,
                             int32_t* item_ids, float* scores) {
  if (k < 1) invalid("Expected k of at least 1, got " + std::to_string(k) + ".");
  check(history);
  check(selection);
  check(ranking);
  check_answerable(history);
  k = std::min(k, num_items());
  begin();
  Context context{pool_, arena_};
  if (is_only_search(selection, ranking) && is_for_device(history, selection, k)) {
    return recommend_on_device(context, history, selection, k, item_ids, scores);
  }
  const float* query = history.length == 0 ? nullptr : encode(context, history);
  if (query != nullptr && is_only_search(selection, ranking)) {
    const int64_t found = catalogue_.without(selection.exclude, selection.num_excluded, [&] {
      return catalogue_.top_k(context, query, catalogue_.excluded(), k, item_ids, scores);
    });
    return checked(found, scores);
  }
  const Eligible eligible = select(selection);
  const Pool pool = best(context, query, eligible, ranking, pool_size(ranking, k));
  return rerank(context, pool, ranking, k, item_ids, scores);
}

int64_t Retriever::similar(int32_t item, const Selection& selection, int64_t k, int32_t* item_ids, float* scores) {
  check_item("item", item, num_items());
  check(selection);
  begin();
  Context context{pool_, arena_};
  const Eligible eligible = select(selection);
  eligible.excluded[item] = 1;
  float* cosines = arena_.allocate<float>(num_items());
  catalogue_.score_all(context, catalogue_.vector(item), cosines);
  const float* inverse_lengths = catalogue_.inverse_lengths();
  const float own = inverse_lengths[item];
  for (int64_t i = 0; i < num_items(); ++i) cosines[i] *= own * inverse_lengths[i];
  return checked(top_k(cosines, eligible.excluded, num_items(), k, item_ids, scores), scores);
}

int64_t Retriever::search(const float* text_features, const History& history, const Selection& selection, int64_t k,
                          int32_t* item_ids, float* scores) {
  check(history);
  check(selection);
  begin();
  Context context{pool_, arena_};
  const int64_t N = num_items();
  const Eligible eligible = select(selection);
  float* values = arena_.allocate<float>(N);
  float* sums = arena_.allocate<float>(N);
  std::fill(sums, sums + N, 0.0f);
  catalogue_.text_cosines(context, text_features, values);
  add_standardised(values, eligible.excluded, N, 1, sums);
  if (history.length > 0) {
    const float* query = encode(context, history);
    catalogue_.score_all(context, query, values);
    add_standardised(values, eligible.excluded, N, kTasteInSearch, sums);
  }
  return checked(top_k(sums, eligible.excluded, N, k, item_ids, scores), scores);
}

void Retriever::interests(const History& history, float* weights) {
  check(history);
  const int64_t N = num_items(), num_topics = catalogue_.topics().num_topics();
  if (num_topics == 0) invalid("Topics were not found yet.");
  check_answerable(history);
  begin();
  Context context{pool_, arena_};
  float* scores = arena_.allocate<float>(N);
  score_all(context, history.length == 0 ? nullptr : encode(context, history), scores);
  const uint8_t* excluded = catalogue_.excluded();
  float largest = -kLargestScore;
  for (int64_t i = 0; i < N; ++i) {
    if (excluded[i] == 0) largest = std::max(largest, scores[i]);
  }
  double* sums = arena_.allocate<double>(num_topics);
  std::fill(sums, sums + num_topics, 0.0);
  double total = 0;
  for (int64_t i = 0; i < N; ++i) {
    if (excluded[i] != 0) continue;
    const auto share = static_cast<double>(std::exp(scores[i] - largest));
    sums[catalogue_.item_topics()[static_cast<size_t>(i)]] += share;
    total += share;
  }
  const auto sum = static_cast<float>(total);
  check_finite("Scores", &sum, 1);
  for (int64_t t = 0; t < num_topics; ++t) weights[t] = total > 0 ? static_cast<float>(sums[t] / total) : 0.0f;
}

void Retriever::topics_of(const float* features, int64_t count, int32_t* topics) {
  if (catalogue_.topics().num_topics() == 0) invalid("Topics were not found yet.");
  if (recommender().item_features() == nullptr) invalid("This student has no item features, so texts have no topics.");
  begin();
  Context context{pool_, arena_};
  assign_topics(context, catalogue_.topics(), features, count, topics);
}

void Retriever::explain(const History& history, const int32_t* items, int64_t num_items, float* weights) {
  check(history);
  if (history.length == 0) invalid("Expected a history of at least one item.");
  for (int64_t i = 0; i < num_items; ++i) check_item("items", items[i], this->num_items());
  begin();
  Context context{pool_, arena_};
  const int64_t d = recommender().hidden_size();
  int64_t length = 0;
  const float* vectors = history_vectors(context, history, &length);
  // Sequence 0 is the history, sequence 1 + j the history without its j-th last entry.
  const int64_t num_told = length == 1 ? 0 : std::min(length, kMostExplained), num_sequences = 1 + num_told;
  float* rows = arena_.allocate<float>((length + num_told * (length - 1)) * d);
  int32_t* offsets = arena_.allocate<int32_t>(num_sequences + 1);
  std::memcpy(rows, vectors, static_cast<size_t>(length * d) * sizeof(float));
  offsets[0] = 0;
  offsets[1] = static_cast<int32_t>(length);
  for (int64_t j = 0; j < num_told; ++j) {
    const int64_t left_out = length - 1 - j;
    float* row = rows + offsets[1 + j] * d;
    std::memcpy(row, vectors, static_cast<size_t>(left_out * d) * sizeof(float));
    std::memcpy(row + left_out * d, vectors + (left_out + 1) * d,
                static_cast<size_t>((length - 1 - left_out) * d) * sizeof(float));
    offsets[2 + j] = static_cast<int32_t>(offsets[1 + j] + length - 1);
  }
  float* last = arena_.allocate<float>(num_sequences * d);  // [num_sequences, d]
  recommender().last_hidden(context, arena_, rows, offsets, num_sequences, last);

  const float* mean = catalogue_.mean_vector();
  float* centred = arena_.allocate<float>(num_items * d);  // [num_items, d]
  for (int64_t i = 0; i < num_items; ++i) {
    const float* vector = catalogue_.vector(items[i]);
    for (int64_t c = 0; c < d; ++c) centred[i * d + c] = vector[c] - mean[c];
  }
  float* scores = arena_.allocate<float>(num_items * num_sequences);  // [num_items, num_sequences]
  gemm(context, num_items, num_sequences, d, {centred, d, 1}, {last, 1, d}, nullptr, scores, num_sequences, false);
  for (int64_t i = 0; i < num_items; ++i) {
    float* row = weights + i * history.length;
    const float* of_item = scores + i * num_sequences;
    std::fill(row, row + history.length, 0.0f);
    if (num_told == 0) row[history.length - 1] = of_item[0];
    for (int64_t j = 0; j < num_told; ++j) row[history.length - 1 - j] = of_item[0] - of_item[1 + j];
  }
  check_finite("Scores", weights, num_items * history.length);
}

int64_t Retriever::add_items(const float* features, int64_t count) {
  begin();
  Context context{pool_, arena_};
  return catalogue_.append(context, features, count);
}

void Retriever::find_topics(int64_t num_topics, uint64_t seed) {
  begin();
  Context context{pool_, arena_};
  catalogue_.find_topics(context, num_topics, seed);
}

void Retriever::set_topics(const float* centroids, int64_t count) {
  begin();
  Context context{pool_, arena_};
  catalogue_.set_topics(context, centroids, count);
}

}  // namespace limbeck
