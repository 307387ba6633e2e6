#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Maximal marginal relevance (Carbonell and Goldstein 1998, SIGIR): chooses `count` of the pool one after the other,
/// each time the one with the largest (1 − diversity)·relevance − diversity·(largest cosine with one chosen before),
/// relevance being the score, 0 for the least of the pool and 1 for the largest.
///   vectors [pool, d] of length 1 or 0; scores [pool], best first, finite; diversity in [0, 1]
///   order [count] = the places in the pool, in the order chosen; count ≤ pool
void diversify(Context& context, const float* vectors, const float* scores, int64_t pool, int64_t d, float diversity,
               int64_t count, int32_t* order);

/// How many of `count` places are to be sampled: share·count, its fraction by chance, so that the mean is exact.
int64_t explored_places(float share, int64_t count, uint64_t seed);

/// Gives `num_explored` of the `count` places of `order` to entries of the pool that are sampled without repetition in
/// proportion to exp(score) from those outside the first count − num_explored of `order`; which places is random, too.
/// The other places keep their order. The same seed gives the same answer.
///   scores [pool]; order [count], different places in the pool, count ≤ pool
void explore(Context& context, const float* scores, int64_t pool, int64_t num_explored, uint64_t seed, int64_t count,
             int32_t* order);

}  // namespace limbeck
