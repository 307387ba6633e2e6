#include "retrieve/item_table.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "cpu/kernels.h"
#include "cpu/retrieve.h"
#include "ops/gemm.h"
#include "ops/top_k.h"
#include "test.h"

using namespace limbeck;

namespace {

std::vector<float> normals(int64_t count, uint64_t stream) {
  const Philox random{11, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  return out;
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> scores;
  bool operator==(const Answer& other) const { return ids == other.ids && scores == other.scores; }
};

struct Search {
  ThreadPool pool{1};
  Arena arena;
  Context context{pool, arena};

  Answer in_fp32(const std::vector<float>& items, const std::vector<float>& query, const std::vector<uint8_t>& excluded,
                 int64_t k) {
    const auto d = static_cast<int64_t>(query.size()), n = static_cast<int64_t>(items.size()) / d;
    std::vector<float> scores(static_cast<size_t>(n));
    gemm(context, 1, n, d, {query.data(), d, 1}, {items.data(), 1, d}, nullptr, scores.data(), n, false);
    Answer answer{std::vector<int32_t>(static_cast<size_t>(k)), std::vector<float>(static_cast<size_t>(k))};
    const int64_t found = top_k(scores.data(), excluded.data(), n, k, answer.ids.data(), answer.scores.data());
    answer.ids.resize(static_cast<size_t>(found));
    answer.scores.resize(static_cast<size_t>(found));
    return answer;
  }

  Answer in_table(ItemTable& table, const std::vector<float>& query, const std::vector<uint8_t>& excluded, int64_t k) {
    Answer answer{std::vector<int32_t>(static_cast<size_t>(k), -7), std::vector<float>(static_cast<size_t>(k))};
    const int64_t found =
        table.top_k(context, query.data(), excluded.data(), k, answer.ids.data(), answer.scores.data());
    answer.ids.resize(static_cast<size_t>(found));
    answer.scores.resize(static_cast<size_t>(found));
    return answer;
  }
};

/// Whether a batch of `num_queries`, each leaving out three ids of its own, finds what single searches find.
bool batch_agrees(const std::vector<float>& items, int64_t d, int64_t k, int64_t num_queries, float query_size = 1,
                  bool may_be_undecided = false) {
  bool is_equal = true;
  for_each_isa([&] {
    Search search;
    ItemTable table(d);
    const int64_t n = static_cast<int64_t>(items.size()) / d;
    table.append(items.data(), n);
    std::vector<uint8_t> excluded(static_cast<size_t>(n), 0);
    excluded[3] = 1;
    std::vector<float> queries = normals(num_queries * d, 77);
    for (float& value : queries) value *= query_size;
    std::vector<Answer> expected;
    std::vector<int32_t> own, offsets{0};
    for (int64_t s = 0; s < num_queries; ++s) {
      const std::vector<float> query(queries.begin() + s * d, queries.begin() + (s + 1) * d);
      std::vector<int32_t> best = search.in_table(table, query, excluded, 3).ids;
      std::vector<uint8_t> without = excluded;
      for (const int32_t id : best) without[id] = 1;
      std::sort(best.begin(), best.end());
      own.insert(own.end(), best.begin(), best.end());
      offsets.push_back(static_cast<int32_t>(own.size()));
      expected.push_back(search.in_table(table, query, without, k));
    }
    std::vector<int32_t> ids(static_cast<size_t>(num_queries * k), -7);
    std::vector<float> scores(static_cast<size_t>(num_queries * k), std::nanf(""));
    std::vector<int64_t> counts(static_cast<size_t>(num_queries), -7);
    table.top_k_of_batch(search.context, queries.data(), num_queries, excluded.data(), own.data(), offsets.data(), k,
                         ids.data(), scores.data(), counts.data());
    for (int64_t s = 0; s < num_queries; ++s) {
      if (may_be_undecided && counts[s] == -1) continue;
      const Answer answer{{ids.begin() + s * k, ids.begin() + s * k + counts[s]},
                          {scores.begin() + s * k, scores.begin() + s * k + counts[s]}};
      is_equal = is_equal && counts[s] >= 0 && answer == expected[static_cast<size_t>(s)];
    }
  });
  return is_equal;
}

/// Compares the two searches for several queries.
bool agrees(const std::vector<float>& items, int64_t d, int64_t k, const std::vector<uint8_t>& excluded,
            float query_size = 1) {
  bool is_equal = true;
  for_each_isa([&] {
    Search search;
    ItemTable table(d);
    const int64_t n = static_cast<int64_t>(items.size()) / d, half = n / 2;
    table.append(items.data(), half);  // in two parts, cut inside a block
    table.append(items.data() + half * d, n - half);
    for (uint64_t stream = 100; stream < 105; ++stream) {
      std::vector<float> query = normals(d, stream);
      for (float& value : query) value *= query_size;
      is_equal = is_equal && search.in_table(table, query, excluded, k) == search.in_fp32(items, query, excluded, k);
    }
  });
  return is_equal;
}

}  // namespace

TEST("a search of the int8 table gives the ids and the bits of a search in fp32") {
  for (const int64_t d : {1, 3, 16, 50, 64, 128, 300, 1024}) {
    for (const int64_t n : {5, 1023, 1024, 3001}) {
      const auto items = normals(n * d, static_cast<uint64_t>(d));
      for (const int64_t k : {1, 10, 100}) CHECK(agrees(items, d, k, std::vector<uint8_t>(static_cast<size_t>(n), 0)));
    }
  }
}

TEST("a search of the int8 table is exact for items of very different lengths, tiny and huge queries, and exclusions") {
  constexpr int64_t kDim = 48, kCount = 5000;
  auto items = normals(kCount * kDim, 1);
  std::vector<uint8_t> excluded(kCount, 0);
  for (int64_t i = 0; i < kCount; ++i) {
    const float size = std::pow(10.0f, static_cast<float>(i % 9) - 6);
    for (int64_t j = 0; j < kDim; ++j) items[i * kDim + j] *= size;
    excluded[i] = i % 9 == 8;  // the longest
  }
  for (const float query_size : {1.0f, 1e-12f, 1e12f}) CHECK(agrees(items, kDim, 10, excluded, query_size));
  CHECK(agrees(items, kDim, 10, std::vector<uint8_t>(kCount, 1)));
  std::vector<uint8_t> few(kCount, 1);
  few[17] = few[4000] = 0;
  CHECK(agrees(items, kDim, 10, few));
}

TEST("a search of the int8 table breaks ties by the lower id, even when all items are equal") {
  constexpr int64_t kDim = 32, kCount = 9000;
  const auto one = normals(kDim, 1);
  std::vector<float> items;
  for (int64_t i = 0; i < kCount; ++i) items.insert(items.end(), one.begin(), one.end());
  CHECK(agrees(items, kDim, 10, std::vector<uint8_t>(kCount, 0)));
  CHECK(agrees(std::vector<float>(kCount * kDim, 0.0f), kDim, 10, std::vector<uint8_t>(kCount, 0)));
}

TEST("an item or a query that is not finite is searched in fp32") {
  constexpr int64_t kDim = 16, kCount = 2000;
  auto items = normals(kCount * kDim, 1);
  const std::vector<uint8_t> none(kCount, 0);
  items[100 * kDim] = std::numeric_limits<float>::infinity();
  for_each_isa([&] {
    Search search;
    ItemTable table(kDim);
    table.append(items.data(), kCount);
    auto query = normals(kDim, 100);
    CHECK(search.in_table(table, query, none, 5).ids == search.in_fp32(items, query, none, 5).ids);
    query[3] = std::nanf("");
    CHECK(search.in_table(table, query, none, 5).ids == search.in_fp32(items, query, none, 5).ids);
  });
}

TEST("bounds of int8 queries are exact at every small size, together and one by one") {
  for_each_isa([] {
    const CpuKernels& kernels = cpu_kernels();
    const int64_t rows = kernels.quantised_rows;
    const auto largest = static_cast<float>(kernels.quantised_query_max);
    const Philox random{5, 0};
    uint64_t draw = 0;
    for (const int64_t words : {1, 2, 7, 33}) {
      for (const int64_t num_blocks : {1, 2, 5}) {
        for (int64_t num_queries = 1; num_queries <= 2 * rows + 1; ++num_queries) {
          const int64_t n = num_blocks * kQuantisedItems, k = words * kQuantisedWordDimensions, bits = (n + 63) / 64;
          std::vector<int8_t> values(static_cast<size_t>(num_queries * k));
          std::vector<int8_t> panels(static_cast<size_t>((num_queries + rows) / rows * rows * k), 99);
          std::vector<uint8_t> table(static_cast<size_t>(n * k));
          std::vector<float> scales(static_cast<size_t>(n));
          for (float& scale : scales) scale = random.uniform(draw++) + 0.5f;
          const auto item_at = [&](int64_t j, int64_t p) -> uint8_t& {
            return table[static_cast<size_t>(
                ((j / kQuantisedItems * words + p / 4) * kQuantisedItems + j % kQuantisedItems) *
                    kQuantisedWordDimensions +
                p % 4)];
          };
          for (int64_t j = 0; j < n; ++j) {
            for (int64_t p = 0; p < k; ++p) {
              item_at(j, p) = static_cast<uint8_t>(
                  j % 3 == 0 ? 255.0f : std::clamp(128.0f + 50.0f * random.normal(draw++), 1.0f, 255.0f));
            }
          }
          std::vector<QuantisedQuery> queries;
          for (int64_t i = 0; i < num_queries; ++i) {
            int8_t* query = values.data() + i * k;
            int32_t sum = 0;
            for (int64_t p = 0; p < k; ++p) {
              const float value = i % 3 == 0 ? 1000.0f : 25 * random.normal(draw++);
              query[p] = static_cast<int8_t>(std::clamp<float>(value, -largest, largest));
              panels[static_cast<size_t>((i / rows * rows * words + p / 4 * rows + i % rows) * 4 + p % 4)] = query[p];
              sum += query[p];
            }
            queries.push_back({query, words, sum, 0.25f, 3.0f, i % 2 == 0 ? 100.0f : -100.0f});
          }
          std::vector<float> together(static_cast<size_t>(num_queries * n), std::nanf("")), alone = together;
          std::vector<uint64_t> above_together(static_cast<size_t>(num_queries * bits), ~uint64_t{0});
          std::vector<uint64_t> above_alone = above_together;
          kernels.quantised_bounds_of_batch(queries.data(), num_queries,
                                            reinterpret_cast<const int32_t*>(panels.data()), table.data(),
                                            scales.data(), num_blocks, together.data(), above_together.data());
          std::vector<float> expected = together;
          std::vector<uint64_t> above_expected(above_together.size(), 0);
          for (int64_t i = 0; i < num_queries; ++i) {
            const QuantisedQuery& query = queries[static_cast<size_t>(i)];
            kernels.quantised_bounds(table.data(), scales.data(), num_blocks, query, alone.data() + i * n,
                                     above_alone.data() + i * bits);
            for (int64_t j = 0; j < n; ++j) {
              int32_t sum = 0;
              for (int64_t p = 0; p < k; ++p) sum += int32_t{query.values[p]} * (int32_t{item_at(j, p)} - 128);
              const auto at = static_cast<size_t>(i * n + j);
              // A quarter of a whole number and 3 are exact, so that one product rounds.
              expected[at] = scales[static_cast<size_t>(j)] * (static_cast<float>(sum) * 0.25f + 3.0f);
              const bool is_above = expected[at] > query.threshold;
              above_expected[static_cast<size_t>(i * bits + j / 64)] |= uint64_t{is_above} << (j % 64);
            }
          }
          CHECK(together == expected && above_together == above_expected);
          CHECK(alone == expected && above_alone == above_expected);
        }
      }
    }
  });
}

TEST("a threshold is below k numbers, and below hardly more") {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for_each_isa([] {
    const auto exceeded_by = cpu_kernels().exceeded_by;
    for (const int64_t count : {1, 2, 15, 16, 17, 31, 100, 4096}) {
      for (const int64_t k : {1, 2, 10, 100}) {
        for (const int kind : {0, 1, 2, 3}) {
          auto x = normals(count, static_cast<uint64_t>(count + kind));
          for (size_t i = 0; i < x.size(); ++i) {
            if (kind == 1) x[i] = std::round(x[i]);  // ties
            if (kind == 2)
              x[i] = i % 5 == 0 ? 3.0f : static_cast<float>(i) * -1e9f;  // ties at the top, far from the rest
            if (kind == 3) x[i] = std::exp(20 * x[i]);
          }
          const float threshold = exceeded_by(x.data(), count, k, kNone);
          const auto above = std::count_if(x.begin(), x.end(), [&](float value) { return value > threshold; });
          if (threshold != kNone) CHECK(above >= k);
          std::sort(x.begin(), x.end(), std::greater<float>());
          if (count >= 10 * k && kind == 0) CHECK(threshold != kNone && above <= k + k / 8);
          if (count >= 10 * k && kind == 2) CHECK(above == (count + 4) / 5);
          // What is known stays unless more is found.
          const float known = count > k ? std::nextafter(x[static_cast<size_t>(k) - 1], kNone) : 7.0f;
          CHECK(exceeded_by(x.data(), count, k, known) == known);
        }
      }
    }
    const std::vector<float> equal(100, 2.0f);
    CHECK(exceeded_by(equal.data(), 100, 10, kNone) == kNone);
  });
}

TEST("a batch of searches gives what each search alone gives") {
  for (const int64_t d : {3, 64, 130}) {
    const auto items = normals(3001 * d, static_cast<uint64_t>(d));
    for (const int64_t num_queries : {1, 2, 15, 100}) CHECK(batch_agrees(items, d, 10, num_queries));
  }
  const auto items = normals(3001 * 32, 1);
  CHECK(batch_agrees(items, 32, 100, 90));
  for (const float query_size : {1e-12f, 1e12f}) CHECK(batch_agrees(items, 32, 10, 20, query_size));
}

TEST("a batch of searches says which queries the bounds do not decide") {
  constexpr int64_t kDim = 16, kCount = 2000;
  const auto items = normals(kCount * kDim, 1);
  std::vector<float> queries = normals(3 * kDim, 2);
  queries[kDim] = std::nanf("");
  const std::vector<uint8_t> none(kCount, 0);
  const std::vector<int32_t> offsets(4, 0);
  for_each_isa([&] {
    Search search;
    ItemTable table(kDim);
    table.append(items.data(), kCount);
    std::vector<int32_t> ids(15);
    std::vector<float> scores(15);
    std::vector<int64_t> counts(3);
    table.top_k_of_batch(search.context, queries.data(), 3, none.data(), nullptr, offsets.data(), 5, ids.data(),
                         scores.data(), counts.data());
    CHECK(counts == (std::vector<int64_t>{5, -1, 5}));
    table.top_k_of_batch(search.context, queries.data(), 3, none.data(), nullptr, offsets.data(), 300, ids.data(),
                         scores.data(), counts.data());
    CHECK(counts == (std::vector<int64_t>{-1, -1, -1}));
  });
}

TEST("a search of the int8 table is exact whatever the order of the scores, and among ties at the edge") {
  constexpr int64_t kDim = 24, kCount = 6000;
  const std::vector<uint8_t> none(kCount, 0);
  // The score rises, falls, or changes in steps of 1, 10 or 500 items along one direction, with or without noise.
  const auto direction = normals(kDim, 9), noise = normals(kCount * kDim, 10);
  for (const int64_t step : {1, 10, 500}) {
    for (const float slope : {1e-3f, -1e-3f, 1.0f}) {
      for (const float size_of_noise : {0.0f, 1e-3f}) {
        std::vector<float> items(kCount * kDim);
        for (int64_t i = 0; i < kCount; ++i) {
          const float along = 1 + slope * static_cast<float>(i / step);
          for (int64_t j = 0; j < kDim; ++j) {
            items[i * kDim + j] = along * direction[j] + size_of_noise * noise[i * kDim + j];
          }
        }
        for (const int64_t k : {1, 10, 90}) CHECK(agrees(items, kDim, k, none));
        CHECK(batch_agrees(items, kDim, 10, 3, 1, true));
      }
    }
  }
}

TEST("scores beyond the range of fp32 are ranked as in fp32") {
  constexpr int64_t kDim = 8, kCount = 2000;
  std::vector<float> items(kCount * kDim);
  for (size_t i = 0; i < items.size(); ++i) items[i] = 1e20f * static_cast<float>(1 + i / kDim % 7);
  const std::vector<uint8_t> none(kCount, 0);
  for_each_isa([&] {
    Search search;
    ItemTable table(kDim);
    table.append(items.data(), kCount);
    for (const float size : {1e15f, 1e19f, 1e30f}) {
      const std::vector<float> query(kDim, size);
      CHECK(search.in_table(table, query, none, 10) == search.in_fp32(items, query, none, 10));
    }
  });
}

TEST("a batch of searches leaves out most of the catalogue") {
  constexpr int64_t kDim = 16, kCount = 4000, kQueries = 20, kBest = 10;
  const auto items = normals(kCount * kDim, 1), queries = normals(kQueries * kDim, 2);
  // All leave out each third item; query s keeps s of the others, and repeats what it leaves out.
  std::vector<uint8_t> excluded(kCount, 0);
  std::vector<int32_t> own, offsets{0};
  for (int64_t i = 0; i < kCount; i += 3) excluded[i] = 1;
  for (int64_t s = 0; s < kQueries; ++s) {
    for (int32_t i = 0; i < kCount; ++i) {
      const bool is_kept = i % 150 == 1 && i / 150 < s;
      if (!is_kept) own.insert(own.end(), i % 7 == 0 ? 2 : 1, i);
    }
    offsets.push_back(static_cast<int32_t>(own.size()));
  }
  for_each_isa([&] {
    Search search;
    ItemTable table(kDim);
    table.append(items.data(), kCount);
    std::vector<int32_t> ids(kQueries * kBest);
    std::vector<float> scores(kQueries * kBest);
    std::vector<int64_t> counts(kQueries, -7);
    table.top_k_of_batch(search.context, queries.data(), kQueries, excluded.data(), own.data(), offsets.data(), kBest,
                         ids.data(), scores.data(), counts.data());
    for (int64_t s = 0; s < kQueries; ++s) {
      std::vector<uint8_t> without = excluded;
      for (int32_t i = offsets[s]; i < offsets[s + 1]; ++i) without[own[i]] = 1;
      const Answer answer{{ids.begin() + s * kBest, ids.begin() + s * kBest + counts[s]},
                          {scores.begin() + s * kBest, scores.begin() + s * kBest + counts[s]}};
      const std::vector<float> query(queries.begin() + s * kDim, queries.begin() + (s + 1) * kDim);
      CHECK(answer == search.in_fp32(items, query, without, kBest));
    }
  });
}
