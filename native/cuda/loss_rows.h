#pragma once

#include <cfloat>

#include "cuda/packs.h"
#include "cuda/thread_group.h"

namespace limbeck::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kMinusInfinity = -__builtin_inff();
/// The maximum of nothing: unlike −∞, it can be subtracted from −∞.
inline constexpr float kLowest = -FLT_MAX;

/// Σ exp(x) of the elements so far, relative to their largest.
struct RunningSum {
  float largest = kLowest;
  float sum = 0;

  /// Takes count elements at once; those of −∞ add nothing.
  template <int kCount>
  __device__ __forceinline__ void add(const float (&x)[kCount]) {
    float candidate = largest;
#pragma unroll
    for (int j = 0; j < kCount; ++j) candidate = fmaxf(candidate, x[j]);
    if (candidate > largest) {
      sum *= exp2_approx((largest - candidate) * kLog2E);
      largest = candidate;
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum += exp2_approx((x[j] - largest) * kLog2E);
  }

  /// Joins those of all threads of the group.
  template <int kThreads>
  __device__ void join(const ThreadGroup<kThreads>& group) {
    float all[1] = {largest};
    group.largest(all);
    float sums[1] = {sum * exp2_approx((largest - all[0]) * kLog2E)};
    group.sum(sums);
    largest = all[0];
    sum = sums[0];
  }
};

}  // namespace limbeck::cuda
