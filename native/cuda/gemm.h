#pragma once

#include "cuda/pending_sums.h"

namespace limbeck::cuda {

/// Row-major C[m, n] = op(A)[m, k]·op(B)[k, n]. With transpose_a, A lies as [k, m]; with transpose_b, B as [n, k].
struct GemmShape {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t lda, ldb, ldc;  // row strides as they lie
};

/// fp32 sums; fp32 operands are multiplied in full precision (no TF32). One algorithm a shape and one stream: the same
/// bits on every run.
///   bias [n] or null, added before `residual`; residual [m, n] with ldc, or null: C += ; may be C itself (accumulate)
/// Instantiated for (T, Out) = (float, float), (bf16, bf16), (bf16, float); bias and residual are of type Out… the bias
/// of (bf16, float) must be null.
template <typename T, typename Out>
void gemm(Context& context, const GemmShape& shape, const T* a, const T* b, const Out* bias, const Out* residual,
          Out* c);

/// y [num_rows, out_features] = x·weightᵀ + bias (+ residual).   weight [out_features, in_features]
template <typename T>
void linear_forward(Context& context, const T* x, const T* weight, const T* bias, const T* residual, T* y,
                    int64_t num_rows, int64_t in_features, int64_t out_features);

///   d_x [num_rows, in_features] = (or null)
///   d_weight fp32 [out_features, in_features] = (or null), += with `accumulate`
template <typename T>
void linear_backward(Context& context, const T* x, const T* weight, const T* d_y, T* d_x, float* d_weight,
                     int64_t num_rows, int64_t in_features, int64_t out_features, bool accumulate);

/// gelu_input [num_rows, out_features] = x·weightᵀ + bias, y = GELU(gelu_input), tanh form. In bf16 GELU is part of the
/// product where the library has that: y is then of the sum before it is rounded. fp32 has the two one by one.
///   gelu_input null: not kept
template <typename T>
void linear_gelu_forward(Context& context, const T* x, const T* weight, const T* bias, T* gelu_input, T* y,
                         int64_t num_rows, int64_t in_features, int64_t out_features);

/// Of y = GELU(gelu_input)·weightᵀ, the linear layer that follows; its d_weight is linear_backward()'s.
///   weight [out_features, in_features]; gelu_input [num_rows, in_features]
///   d_gelu_input [num_rows, in_features] = (d_y·weight)·GELU'(gelu_input), not in the place of gelu_input
///   d_bias null, or += its column sums [in_features], at once or with those that are `pending`
template <typename T>
void linear_gelu_backward(Context& context, const T* d_y, const T* weight, const T* gelu_input, T* d_gelu_input,
                          float* d_bias, int64_t num_rows, int64_t in_features, int64_t out_features,
                          PendingSums* pending = nullptr);

}  // namespace limbeck::cuda
