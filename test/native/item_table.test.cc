#include "retrieve/item_table.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
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
