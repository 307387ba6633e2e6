#include "retrieve/topics.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rng.h"
#include "ops/gemm.h"

namespace limbeck {

namespace {

constexpr int64_t kMaxRows = 20'000;
constexpr int kMaxRounds = 30;
// Rows whose cosines with all topics are in memory at once.
constexpr int64_t kRowsAtOnce = 1024;

/// Rows of `x` whose number is a multiple of rows / count, copied.
std::vector<float> spread_rows(const float* x, int64_t rows, int64_t width, int64_t count) {
  std::vector<float> sample(static_cast<size_t>(count * width));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(sample.data() + i * width, x + i * rows / count * width, static_cast<size_t>(width) * sizeof(float));
  }
  return sample;
}

/// k-means++ (Arthur and Vassilvitskii 2007): each next centroid is a row, with probability in proportion to its
/// squared distance from those before, 2·(1 − cosine).
void seed_centroids(Context& context, const float* x, int64_t rows, uint64_t seed, Topics& topics, int64_t num_topics) {
  const int64_t width = topics.width;
  const Philox random{seed, 0};
  std::vector<float> cosines(static_cast<size_t>(rows));
  std::vector<double> distances(static_cast<size_t>(rows), 1.0);
  topics.centroids.resize(static_cast<size_t>(num_topics * width));
  for (int64_t t = 0; t < num_topics; ++t) {
    double total = 0;
    for (const double distance : distances) total += distance;
    double target = static_cast<double>(random.uniform(static_cast<uint64_t>(t))) * total;
    int64_t chosen = 0;
    while (chosen + 1 < rows && (target -= distances[static_cast<size_t>(chosen)]) >= 0) ++chosen;
    float* centroid = topics.centroids.data() + t * width;
    std::memcpy(centroid, x + chosen * width, static_cast<size_t>(width) * sizeof(float));
    gemm(context, rows, 1, width, {x, width, 1}, {centroid, 1, width}, nullptr, cosines.data(), 1, false);
    for (int64_t i = 0; i < rows; ++i) {
      const double distance = std::max(0.0, 1.0 - static_cast<double>(cosines[static_cast<size_t>(i)]));
      distances[static_cast<size_t>(i)] = t == 0 ? distance : std::min(distances[static_cast<size_t>(i)], distance);
    }
  }
}

}  // namespace

void normalise_rows(float* x, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = x + i * width;
    double square = 0;
    for (int64_t j = 0; j < width; ++j) square += static_cast<double>(row[j]) * static_cast<double>(row[j]);
    const double scale = square > 0 && std::isfinite(square) ? 1 / std::sqrt(square) : 0;
    for (int64_t j = 0; j < width; ++j) {
      row[j] = scale == 0 ? 0 : static_cast<float>(static_cast<double>(row[j]) * scale);
    }
  }
}

void assign_topics(Context& context, const Topics& topics, const float* x, int64_t rows, int32_t* assignments) {
  const int64_t width = topics.width, num_topics = topics.num_topics();
  const Arena::Scope scope(context.scratch);
  float* cosines = context.scratch.allocate<float>(kRowsAtOnce * num_topics);  // [rows of a part, topics]
  for (int64_t begin = 0; begin < rows; begin += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - begin);
    gemm(context, count, num_topics, width, {x + begin * width, width, 1}, {topics.centroids.data(), 1, width}, nullptr,
         cosines, num_topics, false);
    for (int64_t i = 0; i < count; ++i) {
      const float* row = cosines + i * num_topics;
      assignments[begin + i] = static_cast<int32_t>(std::max_element(row, row + num_topics) - row);
    }
  }
}

Topics fit_topics(Context& context, const float* x, int64_t rows, int64_t width, int64_t num_topics, uint64_t seed) {
  const int64_t count = std::min(rows, kMaxRows);
  std::vector<float> sample;
  if (count < rows) {
    sample = spread_rows(x, rows, width, count);
    x = sample.data();
  }
  Topics topics;
  topics.width = width;
  seed_centroids(context, x, count, seed, topics, std::min(num_topics, count));
  std::vector<int32_t> assignments(static_cast<size_t>(count), -1), previous;
  for (int round = 0; round < kMaxRounds; ++round) {
    previous = assignments;
    assign_topics(context, topics, x, count, assignments.data());
    if (assignments == previous) break;
    std::vector<float> sums(topics.centroids.size(), 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      float* sum = sums.data() + assignments[static_cast<size_t>(i)] * width;
      for (int64_t j = 0; j < width; ++j) sum[j] += x[i * width + j];
    }
    normalise_rows(sums.data(), topics.num_topics(), width);
    for (int64_t t = 0; t < topics.num_topics(); ++t) {
      const float* sum = sums.data() + t * width;
      // A topic that lost all its rows stays where it was.
      if (std::any_of(sum, sum + width, [](float value) { return value != 0; })) {
        std::memcpy(topics.centroids.data() + t * width, sum, static_cast<size_t>(width) * sizeof(float));
      }
    }
  }
  return topics;
}

}  // namespace limbeck
