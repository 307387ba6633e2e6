#include "retrieve/retriever.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr int64_t kWidth = 16, kFeatures = 6, kHistory = 8;

std::shared_ptr<const Recommender> make_recommender(int64_t num_items, bool has_features = true) {
  TransformerConfig config{};
  config.vocab_size = num_items;
  config.hidden_size = kWidth;
  config.num_hidden_layers = 1;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.head_dim = kWidth / 2;
  config.intermediate_size = 32;
  config.max_position_embeddings = kHistory;
  config.norm = NormKind::kLayerNorm;
  config.norm_placement = NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = PositionKind::kLearned;
  config.causal = config.tie_word_embeddings = true;
  config.hidden_act = Activation::kGeluTanh;
  config.item_feature_size = has_features ? kFeatures : 0;
  Transformer model(config);
  model.initialize(4, 0.5f);
  if (has_features) {
    const Philox random{9, 0};
    std::vector<float> features(static_cast<size_t>(num_items * kFeatures));
    for (size_t i = 0; i < features.size(); ++i) features[i] = random.normal(i);
    model.set_item_features(features.data());
  }
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  return std::make_shared<const Recommender>(context, model);
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> scores;
  bool operator==(const Answer& other) const { return ids == other.ids && scores == other.scores; }
};

Answer recommend(Retriever& retriever, const std::vector<int32_t>& history, const Selection& selection,
                 const Ranking& ranking, int64_t k) {
  Answer answer{std::vector<int32_t>(static_cast<size_t>(k), -7), std::vector<float>(static_cast<size_t>(k))};
  const int64_t count = retriever.recommend({history.data(), static_cast<int64_t>(history.size())}, selection, ranking,
                                            k, answer.ids.data(), answer.scores.data());
  answer.ids.resize(static_cast<size_t>(count));
  answer.scores.resize(static_cast<size_t>(count));
  return answer;
}

std::vector<float> features_of(int64_t count, uint64_t stream) {
  const Philox random{13, stream};
  std::vector<float> features(static_cast<size_t>(count * kFeatures));
  for (size_t i = 0; i < features.size(); ++i) features[i] = random.normal(i);
  return features;
}

/// A catalogue with everything: added items, categories, hidden ones, boosts, popularity.
struct World {
  World(int64_t base, int64_t added, bool has_boosts)
      : recommender(make_recommender(base)),
        retriever(Catalogue(recommender)),
        bare(Catalogue(recommender)),
        num_items(base + added) {
    if (added > 0) {
      const auto features = features_of(added, 1);
      for (Retriever* one : {&retriever, &bare}) one->add_items(features.data(), added);
    }
    const Philox random{21, 0};
    std::vector<int32_t> categories, offsets = {0};
    for (int64_t i = 0; i < num_items; ++i) {
      const float u = random.uniform(static_cast<uint64_t>(i));
      categories.push_back(static_cast<int32_t>(i % 5));
      is_rare.push_back(u < 0.1f);
      if (u < 0.1f) categories.push_back(5);
      offsets.push_back(static_cast<int32_t>(categories.size()));
      hidden.push_back(u > 0.95f);
      boosts.push_back(has_boosts && i % 97 == 3 ? 4 * u - 2 : 0.0f);
      counts.push_back(std::floor(100 * u * u));
    }
    retriever.describe(categories.data(), offsets.data(), boosts.data(), hidden.data(), num_items);
    retriever.set_popularity(counts.data(), num_items);
    bare.set_popularity(counts.data(), num_items);
    total = std::accumulate(counts.begin(), counts.end(), static_cast<double>(num_items));
  }

  /// The model's own scores, or log popularity.
  std::vector<float> scores(const std::vector<int32_t>& history) {
    const Answer all = recommend(bare, history, {}, {}, num_items);
    std::vector<float> by_id(static_cast<size_t>(num_items));
    for (size_t i = 0; i < all.ids.size(); ++i) by_id[static_cast<size_t>(all.ids[i])] = all.scores[i];
    return by_id;
  }

  float log_popularity(int64_t i) const {
    return static_cast<float>(std::log((static_cast<double>(counts[static_cast<size_t>(i)]) + 1) / total));
  }

  std::shared_ptr<const Recommender> recommender;
  Retriever retriever, bare;
  int64_t num_items;
  std::vector<int32_t> hidden;
  std::vector<float> boosts, counts;
  std::vector<bool> is_rare;
  double total = 0;
};

/// A random request, with lists of its own.
struct Case {
  Case(const World& world, uint64_t seed) {
    const Philox random{seed, 77};
    uint64_t next = 0;
    const auto draw = [&](int64_t limit) {
      return static_cast<int32_t>(random.word(next++) % static_cast<uint64_t>(limit));
    };
    const auto fill = [&](std::vector<int32_t>& list, int64_t count) {
      for (int64_t i = 0; i < count; ++i) list.push_back(draw(world.num_items));
    };
    fill(history, draw(12));
    fill(exclude, draw(3) == 0 ? draw(200) : draw(10));
    if (draw(2) == 0) any = {draw(6), draw(8) - 1};
    if (draw(4) == 0) all = {5};
    if (draw(3) == 0) none = {draw(6)};
    has_candidates = draw(4) == 0;
    if (has_candidates) fill(candidates, draw(400));
    if (draw(3) == 0) {
      std::vector<int32_t> ids;
      fill(ids, draw(2) == 0 ? 20 : 500);
      const std::set<int32_t> different(ids.begin(), ids.end());
      boosted.assign(different.begin(), different.end());
      for (size_t i = 0; i < boosted.size(); ++i) boosts.push_back(random.normal(1000 + i));
    }
    k = 1 + draw(draw(5) == 0 ? world.num_items : 25);
    novelty = draw(3) == 0 ? 0.3f : 0.0f;
  }

  Selection selection() const {
    Selection selection{exclude.data(), static_cast<int64_t>(exclude.size()), {}, nullptr, -1};
    selection.categories = {any.data(),
                            all.data(),
                            none.data(),
                            static_cast<int64_t>(any.size()),
                            static_cast<int64_t>(all.size()),
                            static_cast<int64_t>(none.size())};
    if (has_candidates) {
      selection.candidates = candidates.data();
      selection.num_candidates = static_cast<int64_t>(candidates.size());
    }
    return selection;
  }

  Ranking ranking() const {
    Ranking ranking;
    ranking.boosted = boosted.data();
    ranking.boosts = boosts.data();
    ranking.num_boosts = static_cast<int64_t>(boosted.size());
    ranking.novelty = novelty;
    return ranking;
  }

  bool is_eligible(const World& world, int32_t id) const {
    const auto in = [](const std::vector<int32_t>& list, int32_t value) {
      return std::find(list.begin(), list.end(), value) != list.end();
    };
    const auto owns = [&](int32_t category) {
      return category == id % 5 || (category == 5 && world.is_rare[static_cast<size_t>(id)]);
    };
    return world.hidden[static_cast<size_t>(id)] == 0 && !in(exclude, id) && (!has_candidates || in(candidates, id)) &&
           (any.empty() || std::any_of(any.begin(), any.end(), owns)) && std::all_of(all.begin(), all.end(), owns) &&
           std::none_of(none.begin(), none.end(), owns);
  }

  std::vector<int32_t> history, exclude, any, all, none, candidates, boosted;
  std::vector<float> boosts;
  bool has_candidates = false;
  int64_t k = 1;
  float novelty = 0;
};

}  // namespace

TEST("the retriever gives the best eligible items by score, boosts and novelty, whatever is asked") {
  for (const auto& [base, added] : {std::pair<int64_t, int64_t>{40, 0}, {40, 25}, {1500, 0}, {1300, 1200}}) {
    for (const bool has_boosts : {false, true}) {
      World world(base, added, has_boosts);
      for (uint64_t seed = 0; seed < 60; ++seed) {
        const Case one(world, seed);
        std::vector<float> adjusted = world.scores(one.history);
        std::vector<float> best;
        for (int32_t i = 0; i < world.num_items; ++i) {
          float& score = adjusted[static_cast<size_t>(i)];
          score += world.boosts[static_cast<size_t>(i)] - one.novelty * world.log_popularity(i);
          for (size_t j = 0; j < one.boosted.size(); ++j) score += one.boosted[j] == i ? one.boosts[j] : 0;
          if (one.is_eligible(world, i)) best.push_back(score);
        }
        std::sort(best.rbegin(), best.rend());
        const Answer answer = recommend(world.retriever, one.history, one.selection(), one.ranking(), one.k);
        CHECK(answer.ids.size() == std::min(static_cast<size_t>(one.k), best.size()));
        CHECK(std::set<int32_t>(answer.ids.begin(), answer.ids.end()).size() == answer.ids.size());
        bool is_right = true;
        for (size_t i = 0; i < answer.ids.size() && is_right; ++i) {
          is_right = one.is_eligible(world, answer.ids[i]) && std::fabs(answer.scores[i] - best[i]) < 1e-4f &&
                     std::fabs(answer.scores[i] - adjusted[static_cast<size_t>(answer.ids[i])]) < 1e-4f;
        }
        CHECK(is_right);
      }
    }
  }
}

namespace {

/// Answers as a retriever of its own does, and counts.
class CountingDevice final : public RequestDevice {
 public:
  CountingDevice(const std::shared_ptr<const Recommender>& recommender, int64_t max_items, const bool& is_ready,
                 int64_t& num_answered)
      : retriever_(Catalogue(recommender)), max_items_(max_items), is_ready_(is_ready), num_answered_(num_answered) {}
  bool is_ready() override { return is_ready_; }
  int64_t max_items() const override { return max_items_; }
  int64_t recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded, int64_t k,
                    int32_t* item_ids, float* scores) override {
    CHECK(length >= 1 && length <= kHistory && num_excluded <= max_items_ && k <= max_items_);
    ++num_answered_;
    Selection selection;
    selection.exclude = exclude;
    selection.num_excluded = num_excluded;
    return retriever_.recommend({history, length}, selection, {}, k, item_ids, scores);
  }
  bool rank(const RankInputs&, int32_t*, int32_t*, float*) override { return false; }

 private:
  Retriever retriever_;
  int64_t max_items_;
  const bool& is_ready_;
  int64_t& num_answered_;
};

}  // namespace

TEST("a device answers plain requests of the items that it has, and the answers are the same") {
  for (const int64_t added : {int64_t{0}, int64_t{25}}) {
    World world(300, added, false);
    bool is_ready = true;
    int64_t num_answered = 0;
    constexpr int64_t kMaxItems = 60;
    Retriever with_device(world.retriever.catalogue(),
                          std::make_unique<CountingDevice>(world.recommender, kMaxItems, is_ready, num_answered));
    const auto num_hidden = std::count(world.hidden.begin(), world.hidden.end(), 1);
    int64_t num_expected = 0;
    for (uint64_t seed = 0; seed < 2000; ++seed) {
      is_ready = seed % 4 != 3;
      const Case one(world, seed);
      const Selection selection = one.selection();
      const Ranking ranking = one.ranking();
      const auto last = std::min(static_cast<int64_t>(one.history.size()), kHistory);
      const bool is_plain =
          selection.is_open() && ranking.is_plain() && !one.history.empty() && one.k <= kMaxItems &&
          selection.num_excluded + num_hidden <= kMaxItems &&
          std::all_of(one.history.end() - last, one.history.end(), [](int32_t id) { return id < 300; });
      num_expected += is_plain && is_ready;
      CHECK(recommend(with_device, one.history, selection, ranking, one.k) ==
            recommend(world.retriever, one.history, selection, ranking, one.k));
      CHECK(num_answered == num_expected);
    }
    CHECK(num_expected > 20 && num_expected < 1000);
  }
}

TEST("a filtered answer has the bits of the unfiltered one, on every instruction set") {
  for_each_isa([] {
    World world(1300, 1200, false);
    const std::vector<int32_t> history = {3, 1400, 8};
    const Answer all = recommend(world.bare, history, {}, {}, world.num_items);
    for (const std::vector<int32_t>& any : {std::vector<int32_t>{5}, {1}, {1, 2, 3, 4}}) {
      Selection selection;
      selection.categories.any = any.data();
      selection.categories.num_any = static_cast<int64_t>(any.size());
      Answer expected;
      for (size_t i = 0; i < all.ids.size() && expected.ids.size() < 10; ++i) {
        const int32_t id = all.ids[i];
        const bool owns = std::find(any.begin(), any.end(), id % 5) != any.end() ||
                          (any[0] == 5 && world.is_rare[static_cast<size_t>(id)]);
        if (!owns || world.hidden[static_cast<size_t>(id)] != 0) continue;
        expected.ids.push_back(id);
        expected.scores.push_back(all.scores[i]);
      }
      CHECK(recommend(world.retriever, history, selection, {}, 10) == expected);
    }
  });
}

TEST("a batch gives each history what it gets alone, with its own exclusions, plain or not") {
  constexpr int64_t kK = 12, kCount = 190;
  for_each_isa([&] {
    for (const int64_t added : {0, 40}) {
      World world(3000, added, false);
      const Philox random{31, 0};
      std::vector<int32_t> items, offsets{0}, exclude, exclude_offsets{0};
      const std::vector<int32_t> common{5, 1717};
      uint64_t draw = 0;
      const auto any_item = [&] {
        return static_cast<int32_t>(random.uniform(draw++) * static_cast<float>(world.num_items));
      };
      for (int64_t s = 0; s < kCount; ++s) {
        for (int64_t i = 0; i <= s % 11; ++i) items.push_back(any_item());
        for (int64_t i = 0; i < s % 3; ++i) exclude.push_back(any_item());
        offsets.push_back(static_cast<int32_t>(items.size()));
        exclude_offsets.push_back(static_cast<int32_t>(exclude.size()));
      }
      const HistoryBatch batch{items.data(), offsets.data(), kCount, exclude.data(), exclude_offsets.data()};
      Ranking diverse, seeded;
      diverse.diversity = 0.3f;
      seeded.explore = 0.4f;
      seeded.seed = 77;
      for (const Ranking& ranking : {Ranking{}, diverse, seeded}) {
        Selection selection;
        selection.exclude = common.data();
        selection.num_excluded = 2;
        std::vector<int32_t> ids(static_cast<size_t>(kCount * kK), -7);
        std::vector<float> scores(ids.size(), std::nanf(""));
        world.retriever.recommend_batch(batch, selection, ranking, kK, ids.data(), scores.data());
        for (int64_t s = 0; s < kCount; ++s) {
          const std::vector<int32_t> history(items.begin() + offsets[s], items.begin() + offsets[s + 1]);
          std::vector<int32_t> without(exclude.begin() + exclude_offsets[s], exclude.begin() + exclude_offsets[s + 1]);
          without.insert(without.end(), history.begin(), history.end());
          without.insert(without.end(), common.begin(), common.end());
          Selection own;
          own.exclude = without.data();
          own.num_excluded = static_cast<int64_t>(without.size());
          Ranking of_row = ranking;
          of_row.seed += static_cast<uint64_t>(s);
          const Answer alone = recommend(world.retriever, history, own, of_row, kK);
          CHECK(alone == (Answer{{ids.begin() + s * kK, ids.begin() + (s + 1) * kK},
                                 {scores.begin() + s * kK, scores.begin() + (s + 1) * kK}}));
        }
      }
    }
  });
}

TEST("requests of a batch may each have a ranking and a k of their own") {
  constexpr int64_t kWidth = 40, kCount = 190;
  for_each_isa([&] {
    for (const bool has_boosts : {false, true}) {
      World world(3000, 40, has_boosts);
      Retriever aside(world.retriever.catalogue().searchable());
      const Philox random{32, 0};
      std::vector<int32_t> items, offsets{0}, k;
      std::vector<Ranking> rankings;
      for (int64_t s = 0; s < kCount; ++s) {
        for (int64_t i = 0; i <= s % 7; ++i) {
          items.push_back(static_cast<int32_t>(random.uniform(items.size()) * static_cast<float>(world.num_items)));
        }
        offsets.push_back(static_cast<int32_t>(items.size()));
        k.push_back(static_cast<int32_t>(1 + s * 11 % kWidth));
        Ranking ranking;
        if (s % 5 == 1) ranking.diversity = 0.5f;
        if (s % 5 == 2) ranking.novelty = 0.3f;
        if (s % 3 == 1) ranking.explore = 0.25f;
        ranking.seed = static_cast<uint64_t>(1000 - s);
        rankings.push_back(ranking);
      }
      HistoryBatch batch{items.data(), offsets.data(), kCount};
      batch.rankings = rankings.data();
      batch.k = k.data();
      for (Retriever* retriever : {&world.retriever, &aside}) {
        std::vector<int32_t> ids(static_cast<size_t>(kCount * kWidth), -7);
        std::vector<float> scores(ids.size(), std::nanf(""));
        retriever->recommend_batch(batch, {}, {}, kWidth, ids.data(), scores.data());
        for (int64_t s = 0; s < kCount; ++s) {
          const std::vector<int32_t> history(items.begin() + offsets[s], items.begin() + offsets[s + 1]);
          Selection own;
          own.exclude = history.data();
          own.num_excluded = static_cast<int64_t>(history.size());
          Answer expected = recommend(world.retriever, history, own, rankings[s], k[s]);
          CHECK(expected.ids.size() == static_cast<size_t>(k[s]));
          expected.ids.resize(kWidth, -1);
          expected.scores.resize(kWidth, -std::numeric_limits<float>::infinity());
          CHECK(expected == (Answer{{ids.begin() + s * kWidth, ids.begin() + (s + 1) * kWidth},
                                    {scores.begin() + s * kWidth, scores.begin() + (s + 1) * kWidth}}));
        }
      }
    }
  });
}

TEST("diversity and exploration answer with different eligible items, as many as without them") {
  World world(1300, 200, true);
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Case one(world, seed);
    Ranking ranking = one.ranking();
    const Answer plain = recommend(world.retriever, one.history, one.selection(), ranking, one.k);
    ranking.diversity = seed % 2 == 0 ? 0.7f : 0.0f;
    ranking.explore = seed % 3 == 0 ? 0.0f : 0.4f;
    ranking.seed = seed;
    const Answer answer = recommend(world.retriever, one.history, one.selection(), ranking, one.k);
    CHECK(answer.ids.size() == plain.ids.size());
    CHECK(std::set<int32_t>(answer.ids.begin(), answer.ids.end()).size() == answer.ids.size());
    CHECK(std::all_of(answer.ids.begin(), answer.ids.end(), [&](int32_t id) { return one.is_eligible(world, id); }));
    CHECK(answer == recommend(world.retriever, one.history, one.selection(), ranking, one.k));
  }
}

TEST("similar items have the largest cosines") {
  World world(60, 20, false);
  const Catalogue& catalogue = world.retriever.catalogue();
  const auto cosine = [&](int32_t a, int32_t b) {
    double dot = 0, aa = 0, bb = 0;
    for (int64_t j = 0; j < kWidth; ++j) {
      const double x = catalogue.vector(a)[j], y = catalogue.vector(b)[j];
      dot += x * y;
      aa += x * x;
      bb += y * y;
    }
    return dot / std::sqrt(aa * bb);
  };
  for (const int32_t item : {5, 70}) {
    std::vector<int32_t> ids(80);
    std::vector<float> scores(80);
    const int64_t count = world.retriever.similar(item, {}, 80, ids.data(), scores.data());
    CHECK(count == 79 - std::accumulate(world.hidden.begin(), world.hidden.end(), 0) + world.hidden[item]);
    for (int64_t i = 0; i < count; ++i) {
      CHECK(ids[i] != item && std::fabs(scores[i] - cosine(item, ids[i])) < 1e-5);
      CHECK(i == 0 || scores[i] <= scores[i - 1]);
    }
  }
}

TEST("an explanation is what the scores lose without an entry, against the mean item") {
  World world(50, 10, false);
  const std::vector<int32_t> history = {1, 55, 7, 9}, items = {2, 57};
  std::vector<float> weights(items.size() * history.size());
  world.retriever.explain({history.data(), 4}, items.data(), 2, weights.data());
  const auto above_mean = [&](const std::vector<int32_t>& of, int32_t item) {
    const auto scores = world.scores(of);
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
    return static_cast<double>(scores[static_cast<size_t>(item)]) - sum / static_cast<double>(world.num_items);
  };
  for (size_t i = 0; i < items.size(); ++i) {
    for (size_t j = 0; j < history.size(); ++j) {
      std::vector<int32_t> rest = history;
      rest.erase(rest.begin() + static_cast<int64_t>(j));
      const double expected = above_mean(history, items[i]) - above_mean(rest, items[i]);
      CHECK(std::fabs(weights[i * history.size() + j] - expected) < 1e-4);
    }
  }
  world.retriever.explain({history.data(), 1}, items.data(), 1, weights.data());
  CHECK(std::fabs(weights[0] - above_mean({1}, 2)) < 1e-4);
}

TEST("interests are the shares of the topics in the next choice") {
  World world(300, 40, false);
  world.retriever.find_topics(7, 0);
  const Catalogue& catalogue = world.retriever.catalogue();
  CHECK(catalogue.topics().num_topics() == 7 && catalogue.item_topics().size() == 340);
  const std::vector<int32_t> history = {4, 310};
  std::vector<float> weights(7);
  world.retriever.interests({history.data(), 2}, weights.data());
  const auto scores = world.scores(history);
  std::vector<double> expected(7);
  for (int64_t i = 0; i < world.num_items; ++i) {
    if (world.hidden[i] == 0) expected[catalogue.item_topics()[i]] += std::exp(static_cast<double>(scores[i]));
  }
  const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
  for (size_t t = 0; t < 7; ++t) CHECK(std::fabs(weights[t] - expected[t] / sum) < 1e-4);
  // Topics taken over give the same, and items added later belong to the nearest.
  const std::vector<float> centroids = catalogue.topics().centroids;
  const std::vector<int32_t> before = catalogue.item_topics();
  world.retriever.set_topics(centroids.data(), static_cast<int64_t>(centroids.size()));
  CHECK(catalogue.item_topics() == before);
  const auto features = features_of(40, 1);
  world.retriever.add_items(features.data(), 40);
  CHECK(std::equal(before.end() - 40, before.end(), catalogue.item_topics().end() - 40));
  // A text belongs where an item with its features does, whatever their length.
  std::vector<int32_t> of_texts(40, -1);
  auto doubled = features;
  for (float& value : doubled) value *= 2;
  world.retriever.topics_of(doubled.data(), 40, of_texts.data());
  CHECK(std::equal(of_texts.begin(), of_texts.end(), before.end() - 40));
}

TEST("a search finds the item with the text's features first, and follows the taste of a history") {
  World world(400, 30, false);
  const auto features = features_of(30, 1);
  std::vector<int32_t> ids(5);
  std::vector<float> scores(5);
  int32_t visible = 0;
  while (world.hidden[400 + visible] != 0) ++visible;
  const float* text = features.data() + visible * kFeatures;
  CHECK(world.retriever.search(text, {}, {}, 5, ids.data(), scores.data()) == 5);
  CHECK(ids[0] == 400 + visible);
  std::vector<float> without = scores;
  const std::vector<int32_t> history = {4, 8};
  CHECK(world.retriever.search(text, {history.data(), 2}, {}, 5, ids.data(), scores.data()) == 5);
  CHECK(scores != without);
}

TEST("copies of a catalogue share its vectors, see no later change, and serve on several threads") {
  World world(1500, 100, false);
  const std::vector<int32_t> history = {3, 1550};
  const Answer expected = recommend(world.retriever, history, {}, {}, 12);
  const Catalogue shared = world.retriever.catalogue();
  CHECK(shared.vector(0) == world.retriever.catalogue().vector(0));
  CHECK(shared.vector(1599) == world.retriever.catalogue().vector(1599));
  std::vector<int> agrees(3, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < agrees.size(); ++t) {
    threads.emplace_back([&, t] {
      Retriever own((Catalogue(shared)));
      for (int i = 0; i < 50; ++i) {
        agrees[t] += recommend(own, history, {}, {}, 12) == expected;
        if (i == 25) {
          own.hide(static_cast<int32_t>(t));  // seen by nobody else
          own.hide(expected.ids[0] == static_cast<int32_t>(t) ? 0 : static_cast<int32_t>(t));
        }
      }
      const auto features = features_of(5, 3 + t);
      own.add_items(features.data(), 5);
    });
  }
  for (int i = 0; i < 50; ++i) {
    const auto features = features_of(3, 50 + static_cast<uint64_t>(i));
    world.retriever.add_items(features.data(), 3);
    world.retriever.hide(1);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(shared.num_items() == 1600 && world.retriever.num_items() == 1750);
  for (const int count : agrees) CHECK(count >= 26);
  Retriever again((Catalogue(shared)));
  CHECK(recommend(again, history, {}, {}, 12) == expected);
}

TEST("a search that fails leaves nothing excluded") {
  Catalogue catalogue(make_recommender(40));
  catalogue.hide(3);
  const std::vector<int32_t> ids = {3, 5};
  CHECK_ERROR("ERR_OUT_OF_MEMORY", catalogue.without(ids.data(), 2, [&]() -> int64_t {
    CHECK(catalogue.excluded()[3] != 0 && catalogue.excluded()[5] != 0 && catalogue.excluded()[6] == 0);
    throw Error("ERR_OUT_OF_MEMORY", "");
  }));
  CHECK(catalogue.excluded()[3] == 1 && catalogue.excluded()[5] == 0);
}

TEST("wrong requests are refused by name") {
  World world(30, 0, false);
  Retriever& retriever = world.retriever;
  const std::vector<int32_t> history = {1}, outside = {30}, below = {-1};
  const auto with = [&](auto&& change) {
    Ranking ranking;
    change(ranking);
    recommend(retriever, history, {}, ranking, 3);
  };
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(retriever, outside, {}, {}, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(retriever, below, {}, {}, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(retriever, history, {outside.data(), 1, {}, nullptr, -1}, {}, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(retriever, history, {nullptr, 0, {}, below.data(), 1}, {}, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(retriever, history, {}, {}, 0));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", with([](Ranking& ranking) { ranking.diversity = 1.5f; }));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", with([](Ranking& ranking) { ranking.explore = std::nanf(""); }));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", with([](Ranking& ranking) { ranking.novelty = -1; }));
  const float infinite = std::numeric_limits<float>::infinity();
  CHECK_ERROR("ERR_INVALID_ARGUMENT", with([&](Ranking& ranking) {
                ranking.boosted = history.data();
                ranking.boosts = &infinite;
                ranking.num_boosts = 1;
              }));
  Retriever undescribed((Catalogue(world.recommender)));
  CHECK_ERROR("ERR_UNKNOWN_ITEMS", recommend(undescribed, {}, {}, {}, 3));
  CHECK_ERROR(
      "ERR_INVALID_ARGUMENT",
      recommend(undescribed, history, {nullptr, 0, {history.data(), nullptr, nullptr, 1, 0, 0}, nullptr, -1}, {}, 3));
  Ranking novel;
  novel.novelty = 1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", recommend(undescribed, history, {}, novel, 3));
  CHECK_ERROR("ERR_SHAPE_MISMATCH", undescribed.set_popularity(world.counts.data(), 29));
  Retriever plain(Catalogue(make_recommender(30, false)));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", plain.add_items(world.counts.data(), 1));
  CHECK(recommend(plain, history, {}, {}, 3).ids.size() == 3);
}
