#pragma once

#include "cuda/pending_sums.h"
#include "ops/activation.h"

namespace limbeck::cuda {

/// y = activation(x).   GELU: x, y [num_rows, intermediate_size], may alias.
/// SwiGLU: x [num_rows, 2·intermediate_size] (gate columns, then up columns), y [num_rows, intermediate_size]
template <typename T>
void activation_forward(Context& context, Activation activation, const T* x, T* y, int64_t num_rows,
                        int64_t intermediate_size);

///   d_x = , in the shape of x; of GELU it may alias d_y.
///   d_bias null, or += the column sums of d_x [columns of x], at once or with those that are `pending`
template <typename T>
void activation_backward(Context& context, Activation activation, const T* x, const T* d_y, T* d_x, float* d_bias,
                         int64_t num_rows, int64_t intermediate_size, PendingSums* pending = nullptr);

/// Columns [begin, end) that are left out; none.
struct ColumnGap {
  int64_t begin = 0, end = 0;
};

/// out[j] += Σ over rows of x[row·row_stride + j], in an order that the shape alone decides.
template <typename T>
void add_row_sums(Context& context, const T* x, int64_t row_stride, int64_t num_rows, int64_t num_columns, float* out,
                  PendingSums* pending = nullptr, const ColumnGap& gap = {});

/// Inverted dropout in place, with the mask of ops/activation.h: element i is kept by (seed, stream, first + i).
///   seed [1] in device memory, so that a captured graph can be run with another
template <typename T>
void dropout(Context& context, T* x, int64_t count, float probability, const uint64_t* seed, uint64_t stream,
             int64_t first = 0);

/// y[i] += x[i].
template <typename T>
void add_in_place(Context& context, const T* x, T* y, int64_t count);

/// y[i] = x[i], rounded to the nearest.
template <typename From, typename To>
void convert(Context& context, const From* x, To* y, int64_t count);

/// Rows of x [·, width] named by `rows` [num_rows] → y [num_rows, width] =
template <typename T>
void gather_rows(Context& context, const T* x, const int32_t* rows, T* y, int64_t num_rows, int64_t width);

/// y[rows[r]] += x[r]; the rows are distinct.   x [num_rows, width]
template <typename T>
void scatter_rows_add(Context& context, const T* x, const int32_t* rows, T* y, int64_t num_rows, int64_t width);

/// columns of x [num_rows, x_stride] from `first` on → y [num_rows, width] =   (y_stride = width)
template <typename T>
void copy_columns(Context& context, const T* x, int64_t x_stride, int64_t first, T* y, int64_t num_rows, int64_t width);

/// y [num_rows, y_stride], columns from `first` on, += x [num_rows, width]
template <typename T>
void add_columns(Context& context, const T* x, T* y, int64_t y_stride, int64_t first, int64_t num_rows, int64_t width);

}  // namespace limbeck::cuda
