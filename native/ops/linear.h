#pragma once

#include <cstdint>

#include "ops/context.h"
#include "ops/gemm.h"

namespace limbeck {

/// y = x·weightᵀ + bias.
///   x [num_rows, in_features], weight [out_features, in_features], bias [out_features] or null,
///   y [num_rows, out_features]
void linear_forward(Context& context, const float* x, const float* weight, const float* bias, float* y,
                    int64_t num_rows, int64_t in_features, int64_t out_features);

/// out[j] += Σ over rows of x[row·row_stride + j].   x [num_rows, row_stride], out [num_columns]
void add_row_sums(Context& context, const float* x, int64_t row_stride, int64_t num_rows, int64_t num_columns,
                  float* out);

///   d_x [num_rows, in_features] = (or null), d_weight [out_features, in_features] += (or null),
///   d_bias [out_features] += (or null)
void linear_backward(Context& context, const float* x, const float* weight, const float* d_y, float* d_x,
                     float* d_weight, float* d_bias, int64_t num_rows, int64_t in_features, int64_t out_features);

}  // namespace limbeck
