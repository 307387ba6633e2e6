#include "cuda/rank_items.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  std::vector<int32_t> ranks, indices;
  std::vector<float> scores;
};

/// A catalogue and the cases that are ranked in it.
struct World {
  int64_t num_cases, num_items, width;
  std::vector<float> queries, items;  // [S, d], [V, d]
  std::vector<int32_t> targets, excluded, excluded_offsets{0};

  /// Numbers whose products and sums are exact in any order, in bfloat16 too; many scores are equal.
  World(int64_t num_cases, int64_t num_items, int64_t width)
      : num_cases(num_cases),
        num_items(num_items),
        width(width),
        queries(random_floats(num_cases * width, 1, 3)),
        items(random_floats(num_items * width, 2, 3)) {
    for (std::vector<float>* values : {&queries, &items}) {
      for (float& value : *values) value = std::nearbyint(value);
    }
    const limbeck::Philox random{3, 4};
    uint64_t draw = 0;
    const auto any_item = [&] { return static_cast<int32_t>(random.uniform(draw++) * static_cast<float>(num_items)); };
    for (int64_t s = 0; s < num_cases; ++s) {
      targets.push_back(s == 1 ? 0 : s == 2 ? static_cast<int32_t>(num_items) - 1 : any_item());
      // None, some, or all items but the target.
      std::vector<int32_t> own;
      for (int64_t i = 0; s % 5 == 4 ? i < num_items : i < s % 5 * num_items / 7; ++i) {
        own.push_back(s % 5 == 4 ? static_cast<int32_t>(i) : any_item());
      }
      std::sort(own.begin(), own.end());
      own.erase(std::unique(own.begin(), own.end()), own.end());
      own.erase(std::remove(own.begin(), own.end(), targets.back()), own.end());
      excluded.insert(excluded.end(), own.begin(), own.end());
      excluded_offsets.push_back(static_cast<int32_t>(excluded.size()));
    }
  }

  template <typename T>
  Result run(int64_t k, int64_t chunk_cases) const {
    const int64_t padded = (num_items + 63) / 64 * 64;
    std::vector<float> table = items;
    table.resize(static_cast<size_t>(padded * width), 0.0f);
    TestDevice device;
    const DeviceArray<T> device_queries(converted<T>(queries)), device_items(converted<T>(table));
    const DeviceArray<int32_t> device_targets(targets), device_excluded(excluded), device_offsets(excluded_offsets);
    DeviceArray<int32_t> ranks(num_cases), indices(num_cases * k);
    DeviceArray<float> scores(num_cases * k);
    rank_items<T>(device.context, device_queries.data(), {device_items.data(), nullptr, num_items, padded},
                  {device_targets.data(), device_excluded.data(), device_offsets.data()}, num_cases, width, k,
                  ranks.data(), indices.data(), scores.data(), chunk_cases);
    return {ranks.get(), indices.get(), scores.get()};
  }

  Result expected(int64_t k) const {
    Result result{{}, std::vector<int32_t>(num_cases * k, -1), std::vector<float>(num_cases * k, -kInfinity)};
    for (int64_t s = 0; s < num_cases; ++s) {
      std::vector<float> all(num_items);
      std::vector<int32_t> best;
      for (int64_t i = 0; i < num_items; ++i) {
        for (int64_t c = 0; c < width; ++c) all[i] += queries[s * width + c] * items[i * width + c];
      }
      int32_t rank = 0;
      for (int32_t i = 0; i < num_items; ++i) {
        if (std::binary_search(excluded.begin() + excluded_offsets[s], excluded.begin() + excluded_offsets[s + 1], i)) {
          continue;
        }
        rank += all[i] < all[targets[s]] ? 0 : 1;
        if (!std::isnan(all[i])) best.push_back(i);
      }
      result.ranks.push_back(rank);
      std::stable_sort(best.begin(), best.end(), [&](int32_t a, int32_t b) { return all[a] > all[b]; });
      for (int64_t i = 0; i < std::min(k, static_cast<int64_t>(best.size())); ++i) {
        result.indices[s * k + i] = best[i];
        result.scores[s * k + i] = all[best[i]];
      }
    }
    return result;
  }

  template <typename T>
  bool is_ranked(int64_t k, int64_t chunk_cases = 0) const {
    const Result actual = run<T>(k, chunk_cases), wanted = expected(k);
    return actual.ranks == wanted.ranks && actual.indices == wanted.indices && actual.scores == wanted.scores;
  }
};

}  // namespace

TEST("cuda: rank_items equals a full sort for every width, number of items, k and chunk") {
  int turn = 0;
  for (const int64_t num_items : {1, 2, 63, 64, 65, 700, 2048, 4500}) {
    for (const int64_t width : {8, 24, 64, 5}) {
      const int64_t ks[] = {0, 1, 20, 300};
      const int64_t k = std::min(ks[++turn % 4], num_items), num_cases = 1 + turn * 7 % 30;
      const World world(num_cases, num_items, width);
      if (width % 8 == 0) CHECK(world.is_ranked<bf16>(k, turn % 3 == 0 ? 4 : 0));
      CHECK(world.is_ranked<float>(k, turn % 3 == 1 ? 7 : 0));
    }
  }
}

TEST("cuda: rank_items with lists beyond what threads bound, and beyond what shared memory sorts") {
  const World world(6, 2600, 16);
  for (const int64_t k : {384, 385, 2048, 2049, 2600}) CHECK(world.is_ranked<float>(k, k % 2 == 0 ? 0 : 4));
}

TEST("cuda: rank_items: what has no score counts against every target, is not listed, and comes last as a target") {
  World world(10, 700, 8);
  for (const int64_t item : {3, 4, 64, 699}) world.items[item * 8 + 5] = kNaN;
  world.targets = {3, 64, 699, 5, 6, 7, 8, 9, 10, 11};
  world.excluded = {3, 64, 0, 698};
  world.excluded_offsets = {0, 0, 0, 0, 0, 2, 4, 4, 4, 4, 4};
  world.queries[7 * 8] = kNaN;  // a case without scores
  world.queries[8 * 8] = kInfinity;
  for (const int64_t k : {10, 700}) {
    const Result actual = world.run<float>(k, 0), wanted = world.expected(k);
    CHECK(actual.ranks == wanted.ranks && actual.indices == wanted.indices && actual.scores == wanted.scores);
    CHECK(actual.ranks[0] == 700 && actual.ranks[7] == 700 && actual.indices[7 * k] == -1);
  }
}

TEST("cuda: rank_items: an item with the target's vector ties with it, wherever it lies") {
  World world(9, 4500, 24);
  world.items = random_floats(4500 * 24, 5);
  world.queries = random_floats(9 * 24, 6);
  const std::vector<int64_t> copies = {1, 63, 64, 127, 128, 1000, 2048, 4096, 4499};
  for (const int64_t copy : copies) std::copy_n(world.items.begin() + 500 * 24, 24, world.items.begin() + copy * 24);
  world.targets.assign(9, 500);
  world.excluded.clear();
  world.excluded_offsets.assign(10, 0);
  for (const bool is_bfloat16 : {false, true}) {
    const Result result = is_bfloat16 ? world.run<bf16>(4500, 0) : world.run<float>(4500, 0);
    for (int64_t s = 0; s < 9; ++s) {
      const int32_t* list = result.indices.data() + s * 4500;
      const int64_t first = std::find(list, list + 4500, 1) - list;
      CHECK(first < 4490 && list[first + 5] == 500 && list[first + 9] == 4499);
      CHECK(result.ranks[s] == first + 10);
    }
  }
}
