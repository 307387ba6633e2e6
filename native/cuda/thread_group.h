#pragma once

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// Threads that work on one row together: a warp, or a whole block, all of whose threads then call.
template <int kThreads>
struct ThreadGroup {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kMaxValues = 4;  // that are reduced at a time
  static constexpr int kSharedFloats = kMaxValues * kWarps;

  float* shared;  // [kSharedFloats]

  __device__ static void sync() {
    if constexpr (kThreads > 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  /// x[n] = Σ over the threads of x[n], the same bits in each of them.
  template <int kValues>
  __device__ void sum(float (&x)[kValues]) const {
    reduce(x, [](float a, float b) { return a + b; });
  }
  /// Σ over the threads of x, in double.   doubles [kWarps] shared memory
  __device__ static double sum(double x, double* doubles) {
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    if constexpr (kThreads > 32) {
      __syncthreads();
      if (threadIdx.x % 32 == 0) doubles[threadIdx.x / 32] = x;
      __syncthreads();
      x = doubles[0];
      for (int w = 1; w < kWarps; ++w) x += doubles[w];
    }
    return x;
  }
  /// x[n] = the largest; NaN loses.
  template <int kValues>
  __device__ void largest(float (&x)[kValues]) const {
    reduce(x, [](float a, float b) { return fmaxf(a, b); });
  }

 private:
  template <int kValues, typename Operation>
  __device__ void reduce(float (&x)[kValues], Operation operation) const {
    static_assert(kValues <= kMaxValues);
    for (int n = 0; n < kValues; ++n) {
      for (int mask = 16; mask > 0; mask /= 2) x[n] = operation(x[n], __shfl_xor_sync(0xffffffffu, x[n], mask));
    }
    if constexpr (kThreads > 32) {
      const int warp = static_cast<int>(threadIdx.x) / 32;
      __syncthreads();  // the reduction before may still be reading
      if (threadIdx.x % 32 == 0) {
        for (int n = 0; n < kValues; ++n) shared[n * kWarps + warp] = x[n];
      }
      __syncthreads();
      for (int n = 0; n < kValues; ++n) {
        if constexpr (kWarps == 32) {  // each warp again
          x[n] = shared[n * kWarps + static_cast<int>(threadIdx.x) % 32];
          for (int mask = 16; mask > 0; mask /= 2) x[n] = operation(x[n], __shfl_xor_sync(0xffffffffu, x[n], mask));
          continue;
        }
        x[n] = shared[n * kWarps];
        for (int w = 1; w < kWarps; ++w) x[n] = operation(x[n], shared[n * kWarps + w]);
      }
    }
  }
};

}  // namespace limbeck::cuda
