#pragma once

#include <cstdint>
#include <vector>

#include "ops/context.h"

namespace limbeck {

/// Directions that items cluster around.
struct Topics {
  int64_t width = 0;
  std::vector<float> centroids;  // [num_topics, width], of length 1

  int64_t num_topics() const { return width == 0 ? 0 : static_cast<int64_t>(centroids.size()) / width; }
};

/// Scales rows of x [rows, width] to length 1; rows of zeros, or not finite, become zeros.
void normalise_rows(float* x, int64_t rows, int64_t width);

/// Spherical k-means (Dhillon and Modha 2001, Machine Learning 42) with k-means++ seeding, over at most 20,000 rows
/// spread evenly. The same rows and seed give the same topics on any number of threads.
///   x [rows, width] of length 1 or 0; 1 ≤ num_topics ≤ rows
Topics fit_topics(Context& context, const float* x, int64_t rows, int64_t width, int64_t num_topics, uint64_t seed);

/// assignments [rows] = the topic with the largest cosine, equal ones by lower index.
void assign_topics(Context& context, const Topics& topics, const float* x, int64_t rows, int32_t* assignments);

}  // namespace limbeck
