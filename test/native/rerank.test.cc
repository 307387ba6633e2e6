#include "retrieve/rerank.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "core/rng.h"
#include "retrieve/topics.h"
#include "test.h"

using namespace limbeck;

namespace {

struct Machine {
  ThreadPool pool{1};
  Arena arena;
  Context context{pool, arena};
};

std::vector<float> normals(int64_t count, uint64_t stream) {
  const Philox random{7, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  return out;
}

std::vector<int32_t> places(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

}  // namespace

TEST("diversify chooses what maximal marginal relevance chooses, for every diversity") {
  constexpr int64_t kPool = 40, kDim = 8, kCount = 12;
  auto vectors = normals(kPool * kDim, 1);
  normalise_rows(vectors.data(), kPool, kDim);
  auto scores = normals(kPool, 2);
  std::sort(scores.rbegin(), scores.rend());
  const auto cosine = [&](int64_t a, int64_t b) {
    double sum = 0;
    for (int64_t j = 0; j < kDim; ++j) sum += static_cast<double>(vectors[a * kDim + j]) * vectors[b * kDim + j];
    return sum;
  };
  for (const float diversity : {0.0f, 0.2f, 0.5f, 0.9f, 1.0f}) {
    Machine machine;
    std::vector<int32_t> order(kCount);
    diversify(machine.context, vectors.data(), scores.data(), kPool, kDim, diversity, kCount, order.data());
    std::vector<int64_t> expected;
    for (int64_t place = 0; place < kCount; ++place) {
      int64_t best = -1;
      double best_value = 0;
      for (int64_t i = 0; i < kPool; ++i) {
        if (std::find(expected.begin(), expected.end(), i) != expected.end()) continue;
        double similarity = expected.empty() ? 0 : -2;
        for (const int64_t chosen : expected) similarity = std::max(similarity, cosine(i, chosen));
        const double relevance = (scores[i] - scores.back()) / (scores.front() - scores.back());
        const double value = (1 - diversity) * relevance - diversity * similarity;
        if (best < 0 || value > best_value + 1e-6) {
          best = i;
          best_value = value;
        }
      }
      expected.push_back(best);
    }
    CHECK(std::equal(expected.begin(), expected.end(), order.begin()));
  }
}

TEST("explored places are the share in the mean, and never more than there are") {
  double sum = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) sum += static_cast<double>(explored_places(0.13f, 10, seed));
  CHECK(std::fabs(sum / 4000 - 1.3) < 0.03);
  CHECK(explored_places(0, 10, 5) == 0);
  CHECK(explored_places(1, 10, 5) == 10);
}

TEST("explore keeps the others in order, repeats nothing, and gives the same for the same seed") {
  constexpr int64_t kPool = 60, kCount = 10;
  std::vector<float> scores(kPool);
  for (int64_t i = 0; i < kPool; ++i) scores[i] = -0.1f * static_cast<float>(i);
  Machine machine;
  for (int64_t num_explored = 0; num_explored <= kCount; ++num_explored) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      auto order = places(kCount), again = places(kCount);
      explore(machine.context, scores.data(), kPool, num_explored, seed, kCount, order.data());
      explore(machine.context, scores.data(), kPool, num_explored, seed, kCount, again.data());
      CHECK(order == again);
      CHECK(std::set<int32_t>(order.begin(), order.end()).size() == kCount);
      CHECK(*std::max_element(order.begin(), order.end()) < kPool &&
            *std::min_element(order.begin(), order.end()) >= 0);
      std::vector<int32_t> kept;
      for (const int32_t place : order) {
        if (place < kCount - num_explored) kept.push_back(place);
      }
      CHECK(kept == places(kCount - num_explored));
    }
  }
}

TEST("explore samples in proportion to exp(score), and every place alike") {
  constexpr int64_t kPool = 12, kCount = 4, kRounds = 30'000;
  std::vector<float> scores(kPool);
  for (int64_t i = 0; i < kPool; ++i) scores[i] = -0.3f * static_cast<float>(i);
  Machine machine;
  std::vector<double> chosen(kPool), at(kCount);
  for (uint64_t seed = 0; seed < kRounds; ++seed) {
    auto order = places(kCount);
    explore(machine.context, scores.data(), kPool, 1, seed, kCount, order.data());
    for (int64_t place = 0; place < kCount; ++place) {
      if (order[place] < kCount - 1) continue;
      ++chosen[order[place]];
      ++at[place];
    }
  }
  double total = 0;
  for (int64_t i = kCount - 1; i < kPool; ++i) total += std::exp(static_cast<double>(scores[i]));
  for (int64_t i = kCount - 1; i < kPool; ++i) {
    CHECK(std::fabs(chosen[i] / kRounds - std::exp(static_cast<double>(scores[i])) / total) < 0.01);
  }
  for (int64_t place = 0; place < kCount; ++place) CHECK(std::fabs(at[place] / kRounds - 1.0 / kCount) < 0.01);
}
