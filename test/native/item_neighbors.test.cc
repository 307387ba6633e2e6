#include "retrieve/item_neighbors.h"

#include <cmath>
#include <set>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

struct Data {
  int64_t num_items = 0;
  std::vector<int32_t> items, offsets{0};
  int64_t num_histories() const { return static_cast<int64_t>(offsets.size()) - 1; }
  Histories view() const { return {items.data(), offsets.data(), num_histories()}; }
  int64_t count() const { return static_cast<int64_t>(items.size()); }
};

/// Histories with repetitions, an empty one, and items that nobody chose.
Data random_histories(int64_t num_histories, int64_t num_items, uint64_t seed) {
  const Philox random{seed, 0};
  Data data;
  data.num_items = num_items;
  uint64_t draw = 0;
  for (int64_t h = 0; h < num_histories; ++h) {
    const int64_t length = h == 3 ? 0 : static_cast<int64_t>(random.uniform(draw++) * 9);
    for (int64_t i = 0; i < length; ++i) {
      // Squared, so that some items are popular; the last two are never chosen.
      const float u = random.uniform(draw++);
      data.items.push_back(static_cast<int32_t>(u * u * static_cast<float>(num_items - 2)));
    }
    data.offsets.push_back(static_cast<int32_t>(data.items.size()));
  }
  return data;
}

std::set<int32_t> distinct(const Data& data, int64_t h) {
  return {data.items.begin() + data.offsets[h], data.items.begin() + data.offsets[h + 1]};
}

/// The definition, in double, over a dense matrix.
std::vector<double> reference_cosines(const Data& data) {
  const int64_t n = data.num_items;
  std::vector<double> both(static_cast<size_t>(n * n), 0.0), cosines(static_cast<size_t>(n * n), 0.0);
  for (int64_t h = 0; h < data.num_histories(); ++h) {
    for (const int32_t i : distinct(data, h)) {
      for (const int32_t j : distinct(data, h)) both[i * n + j] += 1;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i != j && both[i * n + j] > 0)
        cosines[i * n + j] = both[i * n + j] / std::sqrt(both[i * n + i] * both[j * n + j]);
    }
  }
  return cosines;
}

std::vector<int32_t> narrow(const std::vector<int64_t>& values) { return {values.begin(), values.end()}; }

}  // namespace

TEST("neighbours are the cosines of the definition, in slices and on any number of threads") {
  const Data data = random_histories(120, 37, 5);
  const auto expected = reference_cosines(data);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    for (const int64_t width : {int64_t{1}, int64_t{10}, int64_t{37}}) {
      for (int64_t begin = 0; begin < 37; begin += width) {
        const int64_t end = std::min<int64_t>(37, begin + width);
        const ItemNeighbors rows = item_neighbors(context, data.view(), data.count(), 37, begin, end);
        CHECK(rows.offsets.size() == static_cast<size_t>(end - begin + 1));
        for (int64_t i = begin; i < end; ++i) {
          std::vector<double> row(37, 0.0);
          for (int64_t e = rows.offsets[i - begin]; e < rows.offsets[i - begin + 1]; ++e) {
            CHECK(e == rows.offsets[i - begin] || rows.items[e - 1] < rows.items[e]);
            row[rows.items[e]] = rows.cosines[e];
          }
          for (int64_t j = 0; j < 37; ++j) CHECK(std::abs(row[j] - expected[i * 37 + j]) < 1e-6);
        }
      }
    }
  }
}

TEST("ranks by neighbours count ties against the target and leave out what is excluded") {
  const Data data = random_histories(120, 37, 6), cases = random_histories(40, 37, 7);
  const auto cosines = reference_cosines(data);
  constexpr double kDecay = 0.5;
  constexpr int64_t kTopK = 5;
  std::vector<int32_t> targets, exclude_ids, exclude_offsets{0};
  for (int64_t s = 0; s < cases.num_histories(); ++s) {
    targets.push_back(static_cast<int32_t>((s * 11) % 37));
    for (const int32_t item : distinct(cases, s)) exclude_ids.push_back(item);
    exclude_offsets.push_back(static_cast<int32_t>(exclude_ids.size()));
  }
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    const ItemNeighbors rows = item_neighbors(context, data.view(), data.count(), 37, 0, 37);
    const auto offsets = narrow(rows.offsets);
    const ItemNeighborsView view{offsets.data(), rows.items.data(), rows.cosines.data(),
                                 static_cast<int64_t>(rows.items.size()), 37};
    const NeighborRankInputs inputs{cases.view(),
                                    cases.count(),
                                    targets.data(),
                                    exclude_ids.data(),
                                    exclude_offsets.data(),
                                    static_cast<int64_t>(exclude_ids.size()),
                                    kDecay,
                                    kTopK};
    std::vector<int32_t> ranks(targets.size(), -1), lists(targets.size() * kTopK, -2);
    rank_by_neighbors(context, view, inputs, ranks.data(), lists.data());
    for (int64_t s = 0; s < cases.num_histories(); ++s) {
      std::vector<double> scores(37, 0.0);
      double weight = 1;
      for (int32_t p = cases.offsets[s + 1] - 1; p >= cases.offsets[s]; --p, weight *= kDecay) {
        for (int64_t j = 0; j < 37; ++j) scores[j] += weight * cosines[cases.items[p] * 37 + j];
      }
      const std::set<int32_t> seen = distinct(cases, s);
      int32_t rank = 1, at_least_nearly = 1;
      for (int32_t j = 0; j < 37; ++j) {
        if (j == targets[s] || seen.count(j) > 0) continue;
        // Scores that differ by rounding alone may fall on either side.
        rank += scores[j] > scores[targets[s]] + 1e-6;
        at_least_nearly += scores[j] > scores[targets[s]] - 1e-6;
      }
      CHECK(ranks[s] >= rank && ranks[s] <= at_least_nearly);
      if (scores[targets[s]] == 0) CHECK(ranks[s] == at_least_nearly);
      for (int64_t i = 0; i < kTopK; ++i) {
        const int32_t item = lists[s * kTopK + i];
        CHECK(item >= 0 && (item == targets[s] || seen.count(item) == 0));
        if (i > 0) CHECK(scores[item] <= scores[lists[s * kTopK + i - 1]] + 1e-6);
      }
    }
  }
}

TEST("neighbours refuse ids and offsets out of range") {
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  const std::vector<int32_t> items{0, 1, 2}, offsets{0, 3}, outside{0, 1, 3}, falling{0, 2, 1, 3};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", item_neighbors(context, {outside.data(), offsets.data(), 1}, 3, 3, 0, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", item_neighbors(context, {items.data(), falling.data(), 3}, 3, 3, 0, 3));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", item_neighbors(context, {items.data(), offsets.data(), 1}, 2, 3, 0, 3));
  const std::vector<float> cosines{0.5f};
  const std::vector<int32_t> rows{0, 1, 1, 1}, neighbor{3}, targets{0}, none{0, 0};
  const NeighborRankInputs inputs{{items.data(), offsets.data(), 1}, 3, targets.data(), nullptr, none.data(), 0, 1, 0};
  int32_t rank = 0;
  CHECK_ERROR("ERR_INVALID_ARGUMENT",
              rank_by_neighbors(context, {rows.data(), neighbor.data(), cosines.data(), 1, 3}, inputs, &rank, nullptr));
}
