#include "retrieve/topics.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

/// Rows around `groups` axes; row i belongs to group i % groups.
std::vector<float> grouped_rows(int64_t rows, int64_t width, int64_t groups) {
  const Philox random{3, 0};
  std::vector<float> x(static_cast<size_t>(rows * width));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      x[i * width + j] = 0.1f * random.normal(static_cast<uint64_t>(i * width + j)) + (j == i % groups ? 1.0f : 0.0f);
    }
  }
  normalise_rows(x.data(), rows, width);
  return x;
}

}  // namespace

TEST("topics find groups of rows, the same on any number of threads") {
  constexpr int64_t kRows = 900, kWidth = 12, kGroups = 6;
  const auto x = grouped_rows(kRows, kWidth, kGroups);
  std::vector<float> centroids;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    const Topics topics = fit_topics(context, x.data(), kRows, kWidth, kGroups, 0);
    CHECK(topics.num_topics() == kGroups);
    if (threads == 1) centroids = topics.centroids;
    CHECK(topics.centroids == centroids);
    std::vector<int32_t> assignments(kRows);
    assign_topics(context, topics, x.data(), kRows, assignments.data());
    int64_t with_first = 0;
    for (int64_t i = 0; i < kRows; ++i) with_first += assignments[i] == assignments[i % kGroups];
    CHECK(with_first == kRows);
    std::map<int32_t, int64_t> sizes;
    for (const int32_t topic : assignments) ++sizes[topic];
    CHECK(sizes.size() == kGroups);
  }
}

TEST("topics of equal rows, of zeros, and as many as rows are all finite") {
  ThreadPool pool(1);
  Arena arena;
  Context context{pool, arena};
  std::vector<float> equal(50, 0.5f), zeros(50, 0.0f);
  normalise_rows(equal.data(), 10, 5);
  normalise_rows(zeros.data(), 10, 5);
  for (const auto& x : {equal, zeros}) {
    const Topics topics = fit_topics(context, x.data(), 10, 5, 10, 1);
    CHECK(topics.num_topics() == 10);
    bool is_finite = true;
    for (const float value : topics.centroids) is_finite = is_finite && std::isfinite(value);
    CHECK(is_finite);
    std::vector<int32_t> assignments(10, -1);
    assign_topics(context, topics, x.data(), 10, assignments.data());
    for (const int32_t topic : assignments) CHECK(topic >= 0 && topic < 10);
  }
}
