#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// A row-major or transposed matrix: element (i, j) is data[i * row_stride + j * column_stride]; one stride is 1.
struct MatrixView {
  const float* data;
  int64_t row_stride;
  int64_t column_stride;
};

/// C = A·B (or C += A·B), A [m, k], B [k, n], C [m, n] row-major with leading dimension ldc. fp32 accumulation; the
/// order of every sum depends on the shapes alone, never on the number of threads. bias [n] may be null; it is not
/// added when C is accumulated to. C must not overlap A or B. m, n or k may be 0 (k = 0 gives zeros plus bias).
void gemm(Context& context, int64_t m, int64_t n, int64_t k, MatrixView a, MatrixView b, const float* bias, float* c,
          int64_t ldc, bool accumulate);

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
