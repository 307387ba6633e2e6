#include "ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Indices by falling score, NaN last, equal scores by index: a full stable sort.
std::vector<int32_t> sorted_indices(const std::vector<float>& scores, const std::vector<uint8_t>& excluded) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (excluded.empty() || !excluded[i]) order.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (std::isnan(scores[a]) || std::isnan(scores[b])) return !std::isnan(scores[a]) && std::isnan(scores[b]);
    return scores[a] > scores[b];
  });
  return order;
}

bool agrees(const std::vector<float>& scores, const std::vector<uint8_t>& excluded, int64_t k) {
  auto expected = sorted_indices(scores, excluded);
  if (static_cast<int64_t>(expected.size()) > k) expected.resize(static_cast<size_t>(k));
  std::vector<int32_t> indices(static_cast<size_t>(k) + 1, -7);
  std::vector<float> values(static_cast<size_t>(k) + 1, -7.0f);
  const int64_t written = top_k(scores.data(), excluded.empty() ? nullptr : excluded.data(),
                                static_cast<int64_t>(scores.size()), k, indices.data(), values.data());
  if (written != static_cast<int64_t>(expected.size())) return false;
  for (int64_t i = 0; i < written; ++i) {
    const float score = scores[expected[i]];
    const bool is_same_value = std::isnan(score) ? std::isnan(values[i]) : values[i] == score;
    if (indices[i] != expected[i] || !is_same_value) return false;
  }
  return indices[static_cast<size_t>(k)] == -7 && values[static_cast<size_t>(k)] == -7.0f;
}

}  // namespace

TEST("top_k equals a stable sort for every length and k, with ties, NaN, infinities and exclusions") {
  for_each_isa([] {
    uint64_t draw = 0;
    const Philox random{17, 3};
    for (const int64_t count : {0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 1000, 2414}) {
      for (const int64_t k : {0, 1, 2, 10, 33, 100, 3000}) {
        for (const int kind : {0, 1, 2, 3}) {
          std::vector<float> scores(static_cast<size_t>(count));
          std::vector<uint8_t> excluded;
          for (float& score : scores) {
            const float uniform = random.uniform(draw++);
            score = kind == 0 ? uniform : std::floor(uniform * 6);  // many ties
            if (kind == 2 && uniform < 0.3f) score = uniform < 0.2f ? kNaN : (uniform < 0.25f ? kInfinity : -kInfinity);
          }
          if (kind == 3) {
            for (int64_t i = 0; i < count; ++i) excluded.push_back(random.uniform(draw++) < 0.4f);
          }
          CHECK(agrees(scores, excluded, k));
        }
      }
    }
  });
}

TEST("top_k of rising, falling and constant scores, where every or no score displaces another") {
  for_each_isa([] {
    std::vector<float> rising, falling, constant(500, 1.0f), nothing(40, kNaN);
    for (int i = 0; i < 500; ++i) {
      rising.push_back(static_cast<float>(i));
      falling.push_back(static_cast<float>(-i));
    }
    for (const auto& scores : {rising, falling, constant, nothing}) CHECK(agrees(scores, {}, 10));
    CHECK(agrees(constant, std::vector<uint8_t>(500, 1), 10));
  });
}

TEST("a NaN beside a good score does not hide it") {
  for_each_isa([] {
    for (int position = 0; position < 64; ++position) {
      std::vector<float> scores(80, 0.0f);
      for (int i = 16; i < 80; ++i) scores[i] = kNaN;
      scores[16 + position] = 5.0f;
      CHECK(agrees(scores, {}, 3));
    }
  });
}

TEST("log_sum_exp is exact around its maximum, for every length") {
  for_each_isa([] {
    for (const int64_t count : {1, 2, 7, 8, 9, 33, 1000, 1025, 50257}) {
      for (const float offset : {0.0f, 900.0f, -900.0f}) {
        const Philox random{8, static_cast<uint64_t>(count)};
        std::vector<float> x(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) x[i] = offset + 3 * random.normal(static_cast<uint64_t>(i));
        const double largest = *std::max_element(x.begin(), x.end());
        double sum = 0;
        for (float value : x) sum += std::exp(value - largest);
        CHECK(std::fabs(log_sum_exp(x.data(), count) - (largest + std::log(sum))) < 2e-6);
      }
    }
  });
}

TEST("log_sum_exp of nothing is −∞; infinities and NaN pass through") {
  for_each_isa([] {
    CHECK(log_sum_exp(nullptr, 0) == -kInfinity);
    const std::vector<float> lowest(20, -kInfinity);
    CHECK(log_sum_exp(lowest.data(), 20) == -kInfinity);
    for (int position = 0; position < 20; ++position) {
      std::vector<float> x(20, 1.0f);
      x[position] = -kInfinity;
      CHECK(std::fabs(log_sum_exp(x.data(), 20) - (1 + std::log(19.0))) < 1e-6);
      x[position] = kInfinity;
      CHECK(log_sum_exp(x.data(), 20) == kInfinity);
      x[position] = kNaN;
      CHECK(std::isnan(log_sum_exp(x.data(), 20)));
    }
  });
}

TEST("log_sum_exp counts nothing for what is −∞ or far below the largest") {
  for_each_isa([] {
    std::vector<float> scores(64, 2.0f);
    for (size_t i = 0; i < scores.size(); i += 2) scores[i] = i % 4 == 0 ? -kInfinity : -1e30f;
    CHECK(std::abs(log_sum_exp(scores.data(), 64) - (2 + std::log(32.0))) < 1e-6);
  });
}
