#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "core/rng.h"
#include "model_configs.h"
#include "retrieve/recommender.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// More items than a block of the catalogue, and more cases than a task.
constexpr int64_t kWidth = 24, kItems = 4500, kCases = 61;

/// Small whole numbers: every score is exact in every precision and order of its sum, and many are equal.
std::vector<float> whole_numbers(int64_t count, uint64_t seed) {
  const Philox random{seed, 0};
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::floor(random.uniform(i) * 5) - 2;
  return values;
}

struct Expected {
  int32_t rank;
  std::vector<int32_t> best;
};

struct Ranking {
  std::vector<float> table = whole_numbers(kItems * kWidth, 1);   // [V, d]
  std::vector<float> states = whole_numbers(kCases * kWidth, 2);  // [S, d]
  std::vector<int32_t> targets, exclude, exclude_offsets{0};
  std::vector<int32_t> histories, history_offsets{0};
  std::vector<int32_t> ranks, ids;
  std::vector<float> scores;

  Ranking() {
    const Philox random{3, 0};
    uint64_t draw = 0;
    const auto any_item = [&] { return static_cast<int32_t>(random.uniform(draw++) * kItems); };
    for (int64_t s = 0; s < kCases; ++s) {
      targets.push_back(s == 5 ? 0 : s == 6 ? static_cast<int32_t>(kItems) - 1 : any_item());
      // Some ids twice, in no order, and the target itself.
      for (int64_t i = 0; i < s % 7 * 40; ++i) exclude.push_back(any_item());
      if (s % 3 == 0) exclude.push_back(targets.back());
      if (s % 4 == 0 && !exclude.empty()) exclude.push_back(exclude.back());
      exclude_offsets.push_back(static_cast<int32_t>(exclude.size()));
      for (int64_t i = 0; i <= s % 4; ++i) histories.push_back(any_item());
      history_offsets.push_back(static_cast<int32_t>(histories.size()));
    }
  }

  Transformer model() const {
    Transformer transformer(gpt2_config({kItems, kWidth, 1, 2, 32, 4}));
    transformer.initialize(4, 0.5f);
    std::copy(table.begin(), table.end(),
              transformer.parameters().values() + transformer.parameters().find("embeddings.word").offset);
    return transformer;
  }

  void run(const Recommender& recommender, Precision precision, int num_threads, int64_t k, const float* of_states,
           RequestDevice* device = nullptr) {
    ThreadPool pool(num_threads);
    Arena arena, scratch;
    Context context{pool, scratch, precision};
    ranks.assign(kCases, -7);
    ids.assign(static_cast<size_t>(kCases * k), -7);
    scores.assign(static_cast<size_t>(kCases * k), kNaN);
    RankInputs inputs{};
    inputs.batch = {histories.data(), history_offsets.data(), nullptr, static_cast<int64_t>(histories.size()), kCases};
    inputs.states = of_states;
    inputs.targets = targets.data();
    inputs.exclude_ids = exclude.data();
    inputs.exclude_offsets = exclude_offsets.data();
    inputs.top_k = k;
    recommender.rank(context, arena, inputs, ranks.data(), ids.data(), scores.data(), device);
  }

  double score(int64_t s, int64_t item) const {
    double sum = 0;
    for (int64_t c = 0; c < kWidth; ++c) sum += double{states[s * kWidth + c]} * double{table[item * kWidth + c]};
    return sum;
  }

  Expected expected(int64_t s, int64_t k) const {
    const int32_t target = targets[static_cast<size_t>(s)];
    std::vector<uint8_t> is_excluded(kItems, 0);
    for (int32_t i = exclude_offsets[s]; i < exclude_offsets[s + 1]; ++i) is_excluded[exclude[i]] = 1;
    is_excluded[target] = 0;
    Expected result{0, {}};
    std::vector<double> all(kItems);
    for (int64_t v = 0; v < kItems; ++v) {
      all[v] = score(s, v);
      if (is_excluded[v]) continue;
      result.rank += !(all[v] < score(s, target));
      if (!std::isnan(all[v])) result.best.push_back(static_cast<int32_t>(v));
    }
    std::stable_sort(result.best.begin(), result.best.end(), [&](int32_t a, int32_t b) { return all[a] > all[b]; });
    if (static_cast<int64_t>(result.best.size()) > k) result.best.resize(static_cast<size_t>(k));
    return result;
  }

  bool agrees(int64_t k) const {
    for (int64_t s = 0; s < kCases; ++s) {
      const Expected wanted = expected(s, k);
      if (ranks[s] != wanted.rank) return false;
      for (int64_t i = 0; i < k; ++i) {
        const bool is_left = i < static_cast<int64_t>(wanted.best.size());
        const int32_t id = is_left ? wanted.best[i] : -1;
        const float value = is_left ? static_cast<float>(score(s, id)) : -std::numeric_limits<float>::infinity();
        if (ids[s * k + i] != id || scores[s * k + i] != value) return false;
      }
    }
    return true;
  }
};

/// Ranks every target first, where it ranks at all, and keeps what it was asked.
class FirstDevice final : public RequestDevice {
 public:
  explicit FirstDevice(bool can_rank) : can_rank_(can_rank) {}
  bool is_ready() override { return false; }
  int64_t max_items() const override { return 0; }
  int64_t recommend(const int32_t*, int64_t, const int32_t*, int64_t, int64_t, int32_t*, float*) override { return 0; }
  bool rank(const RankInputs& inputs, int32_t* ranks, int32_t* item_ids, float*) override {
    exclude_offsets.assign(inputs.exclude_offsets, inputs.exclude_offsets + kCases + 1);
    exclude.assign(inputs.exclude_ids, inputs.exclude_ids + exclude_offsets.back());
    if (can_rank_) {
      std::fill(ranks, ranks + kCases, 1);
      std::fill(item_ids, item_ids + kCases * inputs.top_k, 9);
    }
    return can_rank_;
  }

  std::vector<int32_t> exclude, exclude_offsets;

 private:
  bool can_rank_;
};

/// A recommender packs its weights for the instruction set in use.
template <typename Body>
void for_each_isa_recommender(const Ranking& ranking, Body&& body) {
  for_each_isa([&] {
    ThreadPool pool(1);
    Arena arena;
    Context context{pool, arena};
    const Transformer model = ranking.model();
    body(Recommender(context, model));
  });
}

}  // namespace

TEST("ranks and lists are those of a full sort, block by block: ties, exclusions, every precision, any threads") {
  Ranking ranking;
  for_each_isa_recommender(ranking, [&](const Recommender& recommender) {
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      for (const int num_threads : {1, 2, 5}) {
        for (const int64_t k : {0, 1, 20, 300}) {
          ranking.run(recommender, precision, num_threads, k, ranking.states.data());
          CHECK(ranking.agrees(k));
        }
      }
    }
  });
}

TEST("an item without a score counts against every target, unless it is excluded, and is not listed") {
  Ranking ranking;
  for (const int32_t item : {3, 2047, 2048, 4100}) ranking.table[static_cast<size_t>(item * kWidth + 5)] = kNaN;
  ranking.targets[7] = 2048;  // a target that has none comes last
  for (int32_t& id : ranking.exclude) id = id == 77 ? 3 : id;
  ranking.exclude[static_cast<size_t>(ranking.exclude_offsets[13])] = 4100;
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const Transformer model = ranking.model();
  const Recommender recommender(context, model);
  const int64_t num_listed = kItems - 2;  // fewer are left
  for (const int64_t k : {int64_t{20}, num_listed}) {
    ranking.run(recommender, Precision::kFloat32, 2, k, ranking.states.data());
    CHECK(ranking.agrees(k));
    CHECK(ranking.ids[static_cast<size_t>(k) - 1] == (k == 20 ? ranking.expected(0, k).best.back() : -1));
  }
}

TEST("an item with the target's vector ties with it, wherever it lies in the catalogue") {
  Ranking ranking;
  const Philox random{8, 0};
  for (size_t i = 0; i < ranking.table.size(); ++i) ranking.table[i] = random.normal(i);
  for (size_t i = 0; i < ranking.states.size(); ++i) ranking.states[i] = random.normal(i + ranking.table.size());
  const std::vector<int64_t> copies = {1, 15, 16, 1000, 2046, 2047, 2048, 2049, 3333, kItems - 2, kItems - 1};
  for (const int64_t copy : copies) {
    std::copy_n(ranking.table.begin() + 500 * kWidth, kWidth, ranking.table.begin() + copy * kWidth);
  }
  ranking.targets.assign(kCases, 500);
  ranking.exclude.clear();
  ranking.exclude_offsets.assign(kCases + 1, 0);
  for_each_isa_recommender(ranking, [&](const Recommender& recommender) {
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      ranking.run(recommender, precision, 2, kItems, ranking.states.data());
      for (int64_t s = 0; s < kCases; ++s) {
        const int32_t* list = ranking.ids.data() + s * kItems;
        // Equal scores stand by id, and count against the target.
        const int64_t first = std::find(list, list + kItems, 1) - list;
        CHECK(ranking.ranks[s] == first + static_cast<int64_t>(copies.size()) + 1);
        CHECK(list[first + 1] == 15 && list[first + 3] == 500 && list[first + 11] == kItems - 1);
      }
    }
  });
}

TEST("without states, cases are ranked by what the model makes of their histories") {
  Ranking ranking;
  ThreadPool pool(2);
  Arena arena, scratch;
  Context context{pool, scratch};
  const Transformer model = ranking.model();
  const Recommender recommender(context, model);
  std::vector<float> vectors;
  for (const int32_t item : ranking.histories) {
    vectors.insert(vectors.end(), ranking.table.begin() + item * kWidth, ranking.table.begin() + (item + 1) * kWidth);
  }
  std::vector<float> states(kCases * kWidth, kNaN);
  recommender.last_hidden(context, arena, vectors.data(), ranking.history_offsets.data(), kCases, states.data());
  ranking.run(recommender, Precision::kFloat32, 2, 10, states.data());
  const std::vector<int32_t> ranks = ranking.ranks, ids = ranking.ids;
  CHECK(*std::max_element(ranks.begin(), ranks.end()) > 1000);
  ranking.run(recommender, Precision::kFloat32, 2, 10, nullptr);
  CHECK(ranking.ranks == ranks && ranking.ids == ids);
}

TEST("a device that can ranks instead, each item once among the exclusions, in order and without the target") {
  Ranking ranking;
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const Transformer model = ranking.model();
  const Recommender recommender(context, model);
  FirstDevice able(true), unable(false);
  ranking.run(recommender, Precision::kFloat32, 2, 20, nullptr, &able);
  CHECK(ranking.ranks == std::vector<int32_t>(kCases, 1) && ranking.ids == std::vector<int32_t>(kCases * 20, 9));
  for (int64_t s = 0; s < kCases; ++s) {
    const auto first = ranking.exclude.begin() + ranking.exclude_offsets[s];
    std::set<int32_t> expected(first, ranking.exclude.begin() + ranking.exclude_offsets[s + 1]);
    expected.erase(ranking.targets[static_cast<size_t>(s)]);
    CHECK(std::vector<int32_t>(able.exclude.begin() + able.exclude_offsets[s],
                               able.exclude.begin() + able.exclude_offsets[s + 1]) ==
          std::vector<int32_t>(expected.begin(), expected.end()));
  }
  ranking.run(recommender, Precision::kFloat32, 2, 20, ranking.states.data(), &unable);
  CHECK(ranking.agrees(20) && unable.exclude == able.exclude);
  // More than there are items: not a device's.
  ranking.run(recommender, Precision::kFloat32, 2, kItems + 1, ranking.states.data(), &able);
  CHECK(ranking.agrees(kItems + 1));
}
