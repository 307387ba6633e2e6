#include "retrieve/rerank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/rng.h"
#include "ops/gemm.h"

namespace limbeck {

namespace {

constexpr float kTaken = -std::numeric_limits<float>::infinity();
// Streams of the random numbers of one request.
constexpr uint64_t kCountStream = 1, kPlaceStream = 2, kItemStream = 3;

}  // namespace

void diversify(Context& context, const float* vectors, const float* scores, int64_t pool, int64_t d, float diversity,
               int64_t count, int32_t* order) {
  const Arena::Scope scope(context.scratch);
  float* relevance = context.scratch.allocate<float>(pool);   // [pool], kTaken once chosen
  float* similarity = context.scratch.allocate<float>(pool);  // [pool] largest cosine with one chosen before
  float* cosines = context.scratch.allocate<float>(pool);     // [pool] with the last chosen
  const auto [least, largest] = std::minmax_element(scores, scores + pool);
  const float range = *largest - *least;
  for (int64_t i = 0; i < pool; ++i) {
    relevance[i] = range > 0 ? (scores[i] - *least) / range : 1.0f;
    similarity[i] = 0;
  }
  for (int64_t place = 0; place < count; ++place) {
    int64_t best = -1;
    float best_value = kTaken;
    for (int64_t i = 0; i < pool; ++i) {
      if (relevance[i] == kTaken) continue;
      const float value = (1 - diversity) * relevance[i] - (place == 0 ? 0 : diversity * similarity[i]);
      if (best < 0 || value > best_value) {
        best = i;
        best_value = value;
      }
    }
    order[place] = static_cast<int32_t>(best);
    relevance[best] = kTaken;
    if (place + 1 == count) break;
    gemm(context, 1, pool, d, {vectors + best * d, d, 1}, {vectors, 1, d}, nullptr, cosines, pool, false);
    for (int64_t i = 0; i < pool; ++i) similarity[i] = place == 0 ? cosines[i] : std::max(similarity[i], cosines[i]);
  }
}

int64_t explored_places(float share, int64_t count, uint64_t seed) {
  const double places = static_cast<double>(share) * static_cast<double>(count);
  const auto whole = static_cast<int64_t>(places);
  const bool one_more =
      static_cast<double>(Philox{seed, kCountStream}.uniform(0)) < places - static_cast<double>(whole);
  return std::min(count, whole + (one_more ? 1 : 0));
}

void explore(Context& context, const float* scores, int64_t pool, int64_t num_explored, uint64_t seed, int64_t count,
             int32_t* order) {
  if (num_explored == 0) return;
  const Arena::Scope scope(context.scratch);
  float* keys = context.scratch.allocate<float>(pool);         // [pool]
  int32_t* answer = context.scratch.allocate<int32_t>(count);  // [count], −1 = a sampled place
  const Philox places{seed, kPlaceStream}, items{seed, kItemStream};

  // The largest of score + Gumbel noise are a sample in proportion to exp(score) (Kool et al. 2019, §2.3).
  for (int64_t i = 0; i < pool; ++i) {
    const double uniform = static_cast<double>(items.uniform(static_cast<uint64_t>(i))) + 0x1p-25;  // in (0, 1)
    keys[i] = scores[i] - static_cast<float>(std::log(-std::log(uniform)));
  }
  const int64_t num_kept = count - num_explored;
  for (int64_t i = 0; i < num_kept; ++i) keys[order[i]] = kTaken;

  std::fill(answer, answer + count, 0);
  for (int64_t left = num_explored, place = 0; place < count; ++place) {  // Knuth vol. 2, algorithm 3.4.2 S
    const float remaining = static_cast<float>(count - place);
    if (places.uniform(static_cast<uint64_t>(place)) * remaining < static_cast<float>(left)) {
      answer[place] = -1;
      --left;
    }
  }
  int64_t next_kept = 0;
  for (int64_t place = 0; place < count; ++place) {
    if (answer[place] == 0) {
      answer[place] = order[next_kept++];
      continue;
    }
    const int64_t sampled = std::max_element(keys, keys + pool) - keys;
    answer[place] = static_cast<int32_t>(sampled);
    keys[sampled] = kTaken;
  }
  std::memcpy(order, answer, static_cast<size_t>(count) * sizeof(int32_t));
}

}  // namespace limbeck
