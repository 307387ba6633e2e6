#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Letters of a low-rank product: N = num_rows, in_features, out_features, rank.
struct LowRankShape {
  int64_t num_rows, in_features, out_features, rank;
  int64_t ldy;    // floats from one row of y to the next, ≥ out_features
  float scale;    // α / rank
  float dropout;  // of x; its mask is a function of (seed, stream, first + element of x)
  uint64_t seed, stream;
  uint64_t first = 0;
};

/// LoRA (Hu et al. 2021, arXiv:2106.09685, eq. 3): y += scale·(dropout(x)·Aᵀ)·Bᵀ.
///   x [N, in_features], a [rank, in_features], b [out_features, rank], y [N, ldy], out_features columns of it
void low_rank_forward(Context& context, const LowRankShape& shape, const float* x, const float* a, const float* b,
                      float* y);

/// Two thin products each; no matrix [out_features, in_features] is made.
///   d_y [N, ldy], d_x [N, in_features] += , d_a [rank, in_features] += , d_b [out_features, rank] +=
void low_rank_backward(Context& context, const LowRankShape& shape, const float* x, const float* a, const float* b,
                       const float* d_y, float* d_x, float* d_a, float* d_b);

}  // namespace limbeck
