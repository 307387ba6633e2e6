#include "ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/graph.h"
#include "cuda/loss_head.h"
#include "cuda/top_k_items.h"
#include "device_test.h"
#include "ops/reference_loss.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t padded(int64_t count) { return (count + 63) / 64 * 64; }

/// Random numbers whose products and sums are exact in any order, so that every way of scoring gives the same bits:
/// small integers over 8. There are ties among them.
std::vector<float> exact_floats(int64_t count, uint64_t seed, float magnitude = 8) {
  std::vector<float> out = random_floats(count, seed, magnitude);
  for (float& value : out) value = std::fmin(std::fmax(std::nearbyint(value), -100.0f), 100.0f) / 8;
  return out;
}

std::vector<float> scores_of(const std::vector<float>& queries, const std::vector<float>& items, int64_t q,
                             int64_t num_items, int64_t width) {
  std::vector<float> scores(num_items);
  for (int64_t i = 0; i < num_items; ++i) {
    for (int64_t c = 0; c < width; ++c) scores[i] += queries[q * width + c] * items[i * width + c];
  }
  return scores;
}

bool same_score(float a, float b) { return std::isnan(a) ? std::isnan(b) : a == b; }

/// `indices` and `values` [k] against the CPU's ranking of `scores`.
bool is_ranked(const std::vector<float>& scores, const std::vector<uint8_t>& excluded, int64_t k,
               const int32_t* indices, const float* values) {
  std::vector<int32_t> expected(k, -1);
  std::vector<float> expected_values(k, -kInfinity);
  limbeck::top_k(scores.data(), excluded.empty() ? nullptr : excluded.data(), static_cast<int64_t>(scores.size()), k,
                 expected.data(), expected_values.data());
  for (int64_t i = 0; i < k; ++i) {
    if (indices[i] != expected[i] || !same_score(values[i], expected_values[i])) {
      std::printf("count %zu k %d: place %d is %d (%g), not %d (%g)\n", scores.size(), static_cast<int>(k),
                  static_cast<int>(i), indices[i], static_cast<double>(values[i]), expected[i],
                  static_cast<double>(expected_values[i]));
      return false;
    }
  }
  return true;
}

struct Ranking {
  std::vector<int32_t> indices;
  std::vector<float> values;
};

/// Random exclusions [num_queries, num_items]; some queries exclude everything, or all but a few.
std::vector<uint8_t> random_exclusions(int64_t num_queries, int64_t num_items) {
  std::vector<uint8_t> excluded(num_queries * num_items);
  for (int64_t i = 0; i < num_queries * num_items; ++i) {
    const float uniform = limbeck::Philox{5, 6}.uniform(static_cast<uint64_t>(i));
    const int64_t q = i / num_items;
    excluded[i] = q % 4 == 1 ? 1 : uniform < (q % 4 == 2 ? 0.95f : 0.3f);
  }
  return excluded;
}

/// Items and their int8 table.
template <typename T>
struct QuantisedTable {
  DeviceArray<int8_t> levels;
  DeviceArray<float> scales;
  QuantisedItems items;

  QuantisedTable(TestDevice& device, const DeviceArray<T>& table, int64_t num_items, int64_t width)
      : levels(num_items * QuantisedItems::row_bytes(width)), scales((num_items + 3) / 4 * 4) {
    items = quantise_items<T>(device.context, table.data(), num_items, width, levels.data(), scales.data());
  }
};

template <typename T>
Ranking rank_items(const std::vector<float>& queries, const std::vector<float>& items,
                   const std::vector<uint8_t>& excluded, int64_t num_queries, int64_t num_items, int64_t width,
                   int64_t k, int64_t chunk_items = 0, bool is_quantised = false) {
  const int64_t words = (num_items + 31) / 32;
  std::vector<uint32_t> bits(excluded.empty() ? 0 : num_queries * words, 0);
  for (size_t i = 0; i < excluded.size(); ++i) {
    const int64_t q = static_cast<int64_t>(i) / num_items, item = static_cast<int64_t>(i) % num_items;
    if (excluded[i]) bits[q * words + item / 32] |= 1u << (item % 32);
  }
  TestDevice device;
  const DeviceArray<T> device_queries(converted<T>(queries)), device_items(converted<T>(items));
  const DeviceArray<uint32_t> device_bits(bits);
  DeviceArray<int32_t> indices(num_queries * k);
  DeviceArray<float> values(num_queries * k);
  const QuantisedTable<T> table(device, device_items, is_quantised ? num_items : 0, width);
  top_k_items<T>(device.context, device_queries.data(), device_items.data(),
                 excluded.empty() ? nullptr : device_bits.data(), num_queries, num_items, width, k, indices.data(),
                 values.data(), chunk_items, {}, is_quantised ? table.items : QuantisedItems());
  return {indices.get(), values.get()};
}

template <typename T>
bool items_are_ranked(const std::vector<float>& queries, const std::vector<float>& items, bool with_exclusions,
                      int64_t num_queries, int64_t num_items, int64_t width, int64_t k, int64_t chunk_items = 0,
                      bool is_quantised = false) {
  const std::vector<uint8_t> excluded =
      with_exclusions ? random_exclusions(num_queries, num_items) : std::vector<uint8_t>();
  const Ranking ranking =
      rank_items<T>(queries, items, excluded, num_queries, num_items, width, k, chunk_items, is_quantised);
  for (int64_t q = 0; q < num_queries; ++q) {
    std::vector<uint8_t> own;
    if (with_exclusions) own.assign(excluded.begin() + q * num_items, excluded.begin() + (q + 1) * num_items);
    if (!is_ranked(scores_of(queries, items, q, num_items, width), own, k, ranking.indices.data() + q * k,
                   ranking.values.data() + q * k)) {
      std::printf("  query %d of %d, width %d\n", static_cast<int>(q), static_cast<int>(num_queries),
                  static_cast<int>(width));
      return false;
    }
  }
  return true;
}

template <typename T>
bool random_items_are_ranked(bool with_exclusions, int64_t num_queries, int64_t num_items, int64_t width, int64_t k,
                             int64_t chunk_items = 0, bool is_quantised = false) {
  return items_are_ranked<T>(exact_floats(num_queries * width, 1), exact_floats(num_items * width, 2), with_exclusions,
                             num_queries, num_items, width, k, chunk_items, is_quantised);
}

/// Whether a search by way of quantised items gives the bits of one without.
template <typename T>
bool quantised_are_same(const std::vector<float>& query, const std::vector<float>& items, bool with_exclusions,
                        int64_t k) {
  const int64_t width = static_cast<int64_t>(query.size()), num_items = static_cast<int64_t>(items.size()) / width;
  std::vector<uint8_t> excluded(with_exclusions ? num_items : 0);
  for (size_t i = 0; i < excluded.size(); ++i) excluded[i] = i * 7 % 10 < 3;
  const Ranking expected = rank_items<T>(query, items, excluded, 1, num_items, width, k);
  const Ranking ranking = rank_items<T>(query, items, excluded, 1, num_items, width, k, 0, true);
  return same_bits(expected.indices, ranking.indices) && same_bits(expected.values, ranking.values);
}

/// top_k_logits of hidden [num_rows, width] on exact numbers, against the CPU.
template <typename T>
bool logits_are_ranked(int64_t num_rows, int64_t vocab_size, int64_t width, int64_t k, bool with_bias,
                       int64_t chunk_rows, float magnitude = 8) {
  const std::vector<float> hidden = exact_floats(num_rows * width, 3), bias = exact_floats(vocab_size, 4);
  std::vector<float> table = exact_floats(vocab_size * width, 5, magnitude);
  std::vector<float> padded_table = table, padded_bias = bias;
  padded_table.resize(padded(vocab_size) * width, 0.0f);
  padded_bias.resize(padded(vocab_size), kNaN);
  TestDevice device;
  const DeviceArray<T> device_hidden(converted<T>(hidden)), device_table(converted<T>(padded_table)),
      device_bias(converted<T>(padded_bias));
  DeviceArray<int32_t> indices(num_rows * k);
  DeviceArray<float> values(num_rows * k), log_sum_exp(num_rows);
  top_k_logits<T>(device.context, device_hidden.data(),
                  {device_table.data(), with_bias ? device_bias.data() : nullptr, vocab_size, padded(vocab_size)}, k,
                  indices.data(), values.data(), log_sum_exp.data(), num_rows, width, chunk_rows);
  const std::vector<int32_t> out = indices.get();
  const std::vector<float> out_values = values.get(), out_sums = log_sum_exp.get();
  for (int64_t r = 0; r < num_rows; ++r) {
    std::vector<float> scores = scores_of(hidden, table, r, vocab_size, width);
    for (int64_t v = 0; v < vocab_size && with_bias; ++v) scores[v] += bias[v];
    if (!is_ranked(scores, {}, k, out.data() + r * k, out_values.data() + r * k)) return false;
    const double expected = limbeck::reference_log_sum_exp(std::vector<double>(scores.begin(), scores.end()));
    if (!(std::fabs(out_sums[r] - expected) <= 1e-5 * (1 + std::fabs(expected)))) return false;
  }
  return true;
}

}  // namespace

TEST("cuda: top_k_logits equals the CPU's ranking for every size, k and chunk") {
  int turn = 0;
  for (const int64_t vocab : {1, 2, 33, 64, 100, 1000, 1500}) {
    for (const int64_t k : {int64_t{1}, int64_t{7}, int64_t{100}, vocab / 2, vocab}) {
      if (k < 1 || k > vocab) continue;
      ++turn;
      CHECK(logits_are_ranked<float>(1 + turn % 5, vocab, 4 + turn % 5, k, turn % 2 == 0, turn % 3));
      CHECK(logits_are_ranked<bf16>(1 + turn % 4, vocab, 8, k, turn % 2 == 1, turn % 4));
    }
  }
}

TEST("cuda: top_k_logits with k beyond what shared memory sorts, and with hardly any different logits") {
  CHECK(logits_are_ranked<float>(2, 2500, 4, 2400, true, 0));
  CHECK(logits_are_ranked<bf16>(2, 5000, 8, 5000, true, 1));
  // Each of them is a tie: more reach the bound than are collected.
  for (const int64_t k : {1, 10, 300}) CHECK(logits_are_ranked<float>(1, 6000, 4, k, false, 0, 0));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", logits_are_ranked<float>(1, 10, 4, 11, false, 0));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", logits_are_ranked<float>(1, 10, 4, 0, false, 0));
}

TEST("cuda: top_k_items of one query equals the CPU's ranking for every width, number of items and k") {
  int turn = 0;
  for (const int64_t width : {1, 5, 8, 16, 20, 24, 32, 48, 64, 96, 128, 200, 256, 384}) {
    for (const int64_t items : {1, 63, 64, 65, 500, 3000}) {
      if (items == 3000 && width > 64) continue;
      const int64_t ks[] = {1, 10, 100, 3, 30};
      const int64_t k = ks[++turn % 5];
      CHECK(random_items_are_ranked<bf16>(turn % 3 == 0, 1, items, width, k));
      CHECK(random_items_are_ranked<float>(turn % 3 == 1, 1, items, width, k));
    }
  }
}

TEST("cuda: top_k_items of a few queries, which are scanned together, and of many, which are multiplied") {
  for (const int64_t queries : {2, 3, 8, 9, 20}) {
    for (const int64_t width : {8, 24, 64, 100}) {
      for (const int64_t items : {40, 700}) {
        const bool with_exclusions = items == 700;
        CHECK(random_items_are_ranked<bf16>(with_exclusions, queries, items, width, 20, 128));
        CHECK(random_items_are_ranked<float>(with_exclusions, queries, items, width, 20, 300));
      }
    }
  }
}

TEST("cuda: top_k_items of rows that are not aligned, and too wide to be scanned") {
  CHECK(random_items_are_ranked<bf16>(false, 2, 100, 1032, 5));
  CHECK(random_items_are_ranked<bf16>(false, 2, 100, 1023, 5));
}

TEST("cuda: top_k_items up to k = 1024, and with hardly any different scores") {
  for (const int64_t queries : {1, 12}) {
    for (const int64_t k : {385, 1024}) CHECK(random_items_are_ranked<bf16>(true, queries, 3000, 8, k));
    const std::vector<float> query(queries * 8, 1.0f);
    std::vector<float> items(4000 * 8, 0.5f);
    for (const int64_t k : {1, 10, 300, 1000}) {
      CHECK(items_are_ranked<bf16>(query, items, false, queries, 4000, 8, k));
      CHECK(items_are_ranked<bf16>(query, items, true, queries, 4000, 8, k));
    }
  }
  CHECK_ERROR("ERR_INVALID_ARGUMENT", random_items_are_ranked<bf16>(false, 1, 30, 8, 1025));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", random_items_are_ranked<bf16>(false, 1, 30, 8, 0));
}

TEST("cuda: top_k_items with rising, falling and infinite scores, zeros of both signs, and NaN as the worst") {
  for (const int64_t queries : {1, 9}) {
    const std::vector<float> query(queries, 1.0f);
    std::vector<float> rising, falling, mixed, nothing(70, kNaN);
    for (int i = 0; i < 1000; ++i) {
      rising.push_back(static_cast<float>(i));
      falling.push_back(static_cast<float>(-i));
      const float kinds[] = {kNaN, kInfinity, -kInfinity, 0.0f, -0.0f, 3.0f, -2.0f};
      mixed.push_back(kinds[i * 31 % 7]);
    }
    for (const auto& items : {rising, falling, mixed, nothing}) {
      const int64_t count = static_cast<int64_t>(items.size());
      CHECK(items_are_ranked<float>(query, items, false, queries, count, 1, 10));
      CHECK(items_are_ranked<float>(query, items, true, queries, count, 1, 1000));
    }
  }
}

TEST("cuda: top_k_items of an empty catalogue finds nothing") {
  for (const int64_t queries : {1, 9}) CHECK(random_items_are_ranked<bf16>(false, queries, 0, 8, 3));
}

TEST("cuda: a query gets the same scores alone and among others") {
  const int64_t width = 64, items = 1000, k = 10;
  const std::vector<float> queries = random_floats(8 * width, 8), table = random_floats(items * width, 9);
  const Ranking together = rank_items<bf16>(queries, table, {}, 8, items, width, k);
  for (int64_t q = 0; q < 8; q += 3) {
    const std::vector<float> one(queries.begin() + q * width, queries.begin() + (q + 1) * width);
    const Ranking alone = rank_items<bf16>(one, table, {}, 1, items, width, k);
    for (int64_t i = 0; i < k; ++i) {
      CHECK(alone.indices[i] == together.indices[q * k + i]);
      CHECK(alone.values[i] == together.values[q * k + i]);
    }
  }
}

TEST("cuda: top_k_items by way of quantised items, for every width, number of items and k") {
  int turn = 0;
  for (const int64_t width : {4, 8, 12, 16, 24, 32, 36, 40, 48, 64, 72, 96, 128, 160, 192, 200, 256, 384, 512}) {
    for (const int64_t items : {1, 63, 65, 500, 5000}) {
      if (items == 5000 && width > 64) continue;
      const int64_t ks[] = {1, 10, 64, 3, 30, 33, 2};
      const int64_t k = ks[++turn % 7];
      if (width % 8 == 0) {
        CHECK(random_items_are_ranked<bf16>(turn % 3 == 0, 1, items, width, k, 0, true));
        CHECK(quantised_are_same<bf16>(random_floats(width, 21), random_floats(items * width, 22), turn % 2 == 0, k));
      }
      CHECK(random_items_are_ranked<float>(turn % 3 == 1, 1, items, width, k, 0, true));
      CHECK(quantised_are_same<float>(random_floats(width, 23), random_floats(items * width, 24), turn % 2 == 1, k));
    }
  }
}

TEST("cuda: quantised items change no answer, whatever items and queries there are") {
  const int64_t width = 16, items = 1700;
  std::vector<std::vector<float>> queries = {random_floats(width, 31), exact_floats(width, 32)}, tables;
  const auto with_query = [&](float value) { queries.push_back(std::vector<float>(width, value)); };
  for (const float value : {0.0f, 1.0f, -1.0f, kNaN, kInfinity, 1e-20f, 1e-15f, 1e-39f, 1e14f, 1e20f, 3e38f}) {
    with_query(value);
  }
  queries.push_back(std::vector<float>(width, 0.0f));
  queries.back()[3] = -1e-3f;
  queries.push_back(random_floats(width, 33));
  queries.back()[5] = 1e4f;  // hardly anything is left of the others in 16 bits
  queries.push_back(random_floats(width, 34));
  queries.back()[15] = kNaN;

  const auto table = [&](auto value) {
    tables.emplace_back(items * width);
    const std::vector<float> noise = random_floats(items * width, 35);
    for (int64_t i = 0; i < items; ++i) {
      for (int64_t c = 0; c < width; ++c) tables.back()[i * width + c] = value(i, c, noise[i * width + c]);
    }
  };
  table([](int64_t, int64_t, float) { return 0.5f; });                                    // all equal
  table([](int64_t, int64_t, float) { return 0.0f; });                                    // nothing but zeros
  table([](int64_t i, int64_t, float x) { return i == 1234 ? 1e6f * x : x; });            // an outlier
  table([](int64_t, int64_t c, float x) { return c == 7 ? 1e3f : x; });                   // a dimension of outliers
  table([](int64_t i, int64_t c, float x) { return i % 50 == 3 && c == 2 ? kNaN : x; });  // the worst
  table([](int64_t i, int64_t c, float x) { return i % 50 == 3 && c == 2 ? kInfinity : x; });
  table([](int64_t i, int64_t c, float x) { return i % 50 == 3 && c == 2 ? -kInfinity : x; });
  table([](int64_t, int64_t, float) { return kNaN; });
  table([](int64_t i, int64_t, float x) { return i % 2 == 0 ? 1e-39f * x : 0.0f; });        // below the normal numbers
  table([](int64_t i, int64_t, float x) { return i % 3 == 0 ? 1e-20f * x : 1e-21f * x; });  // at the limits
  table([](int64_t i, int64_t, float x) { return i % 3 == 0 ? 1e20f * x : 1e19f * x; });
  table([](int64_t i, int64_t, float x) { return i % 2 == 0 ? 1e38f * x : 2e38f; });  // scores that are infinite
  table([](int64_t i, int64_t, float x) { return 1 + 1e-2f * x + 1e-7f * static_cast<float>(i % 10); });  // near ties
  table([](int64_t i, int64_t, float) { return static_cast<float>(i % 4); });                             // many ties
  table([](int64_t i, int64_t, float x) { return i < 1695 ? -1000 + x : x; });  // fewer than k good ones
  // The best of a query of ones is rounded down in each dimension, and all others up in nearly each.
  table([](int64_t i, int64_t c, float) { return c == 0 ? 127.0f : i == 77 ? 0.488f : c == 1 ? -0.25f : 0.512f; });
  int turn = 0;
  for (const std::vector<float>& query : queries) {
    for (const std::vector<float>& values : tables) {
      const int64_t ks[] = {10, 1, 64, 30};
      const int64_t k = ks[++turn % 4];
      if ((&query - queries.data() + turn) % 2 == 0) {
        CHECK(quantised_are_same<bf16>(query, values, turn % 3 == 0, k));
      } else {
        CHECK(quantised_are_same<float>(query, values, turn % 3 == 1, k));
      }
    }
  }
}

TEST("cuda: of the items only those are read whose quantised score comes near the best ones") {
  const int64_t width = 64, num_items = 9000, k = 10;
  const std::vector<float> query = rounded<bf16>(random_floats(width, 41));
  std::vector<float> items = rounded<bf16>(random_floats(num_items * width, 42));
  const std::vector<float> scores = scores_of(query, items, 0, num_items, width);
  TestDevice device;
  const DeviceArray<bf16> device_query(converted<bf16>(query));
  DeviceArray<bf16> device_items(converted<bf16>(items));
  const QuantisedTable<bf16> table(device, device_items, num_items, width);
  cudaDeviceSynchronize();
  // What scores below zero is far from the best of any block. It would win if it were read again.
  for (int64_t i = 0; i < num_items; ++i) {
    if (scores[i] < 0)
      std::transform(query.begin(), query.end(), items.begin() + i * width, [](float x) { return 100 * x; });
  }
  device_items.set(converted<bf16>(items));
  DeviceArray<int32_t> indices(k);
  DeviceArray<float> values(k);
  top_k_items<bf16>(device.context, device_query.data(), device_items.data(), nullptr, 1, num_items, width, k,
                    indices.data(), values.data(), 0, {}, table.items);
  std::vector<int32_t> expected(k);
  std::vector<float> expected_values(k);
  limbeck::top_k(scores.data(), nullptr, num_items, k, expected.data(), expected_values.data());
  CHECK(same_bits(indices.get(), expected));
}

TEST("cuda: top_k_items of more lists than threads, each of them of one block") {
  const int64_t width = 8, items = 40000;
  for (const int64_t k : {1, 10, 64}) {
    // The best lie all over the items, or next to each other.
    for (const bool is_sorted : {false, true}) {
      std::vector<float> table = exact_floats(items * width, 12);
      if (is_sorted) {
        for (int64_t i = 0; i < items; ++i) {
          for (int64_t c = 0; c < width; ++c) {
            table[i * width + c] = c == 0 ? static_cast<float>(i / 160) : static_cast<float>(i % 160) / 256;
          }
        }
      }
      const std::vector<float> query(width, 1.0f);
      TestDevice device;
      device.context.num_multiprocessors = 150;
      const DeviceArray<bf16> device_query(converted<bf16>(query)), device_items(converted<bf16>(table));
      const QuantisedTable<bf16> quantised(device, device_items, items, width);
      const std::vector<float> expected = scores_of(query, rounded<bf16>(table), 0, items, width);
      for (const bool is_quantised : {false, true}) {
        DeviceArray<int32_t> indices(k);
        DeviceArray<float> values(k);
        top_k_items<bf16>(device.context, device_query.data(), device_items.data(), nullptr, 1, items, width, k,
                          indices.data(), values.data(), 0, {}, is_quantised ? quantised.items : QuantisedItems());
        CHECK(is_ranked(expected, {}, k, indices.get().data(), values.get().data()));
      }
    }
  }
}

TEST("cuda: top_k_items as a graph, run again with another query and other excluded items") {
  const int64_t width = 16, items = 2000;
  const std::vector<float> table = exact_floats(items * width, 13);
  // One kernel, with quantised items too, and several.
  for (const auto& kind : {std::pair<int64_t, bool>{10, false}, {10, true}, {64, true}, {100, false}, {100, true}}) {
    const int64_t k = kind.first;
    const bool is_quantised = kind.second;
    TestDevice device;
    const DeviceArray<bf16> device_items(converted<bf16>(table));
    const QuantisedTable<bf16> quantised(device, device_items, items, width);
    const QuantisedItems quantised_items = is_quantised ? quantised.items : QuantisedItems();
    DeviceArray<bf16> device_query(converted<bf16>(exact_floats(width, 14)));
    DeviceArray<int32_t> excluded(std::vector<int32_t>(400, 0)), num_excluded(std::vector<int32_t>{0});
    DeviceArray<unsigned> num_finished(std::vector<unsigned>{0});
    DeviceArray<int32_t> indices(k);
    DeviceArray<float> values(k);
    Graph graph;
    const auto body = [&] {
      top_k_items<bf16>(device.context, device_query.data(), device_items.data(), nullptr, 1, items, width, k,
                        indices.data(), values.data(), 0, {excluded.data(), num_excluded.data(), num_finished.data()},
                        quantised_items);
    };
    body();
    graph.capture(device.context, body);
    for (const int run : {0, 1, 2, 3}) {
      const std::vector<float> query = exact_floats(width, 15 + static_cast<uint64_t>(run));
      const std::vector<float> scores = scores_of(query, table, 0, items, width);
      // The very best are left out, which are known from the run before.
      device_query.set(converted<bf16>(query));
      num_excluded.set({0});
      graph.run(device.context);
      std::vector<int32_t> best = indices.get();
      CHECK(is_ranked(scores, {}, k, best.data(), values.get().data()));
      best.resize(k / 2 + 1);
      best.push_back(-5);
      best.push_back(static_cast<int32_t>(items));
      std::vector<uint8_t> flags(items, 0);
      for (int32_t item = 0; item < 300 && run > 1; ++item) best.push_back(item * 5);
      for (int32_t item : best) {
        if (item >= 0 && item < items) flags[item] = 1;
      }
      num_excluded.set({static_cast<int32_t>(best.size())});
      best.resize(400, 7);  // no longer in the list
      excluded.set(best);
      graph.run(device.context);
      CHECK(is_ranked(scores, flags, k, indices.get().data(), values.get().data()));
      CHECK(num_finished.get()[0] == 0);
    }
  }
}
