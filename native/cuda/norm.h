#pragma once

#include "cuda/pending_sums.h"

namespace limbeck::cuda {

// T is float or bf16; sums and statistics are fp32. See ops/norm.h for the mathematics. Gradients that are sums over
// rows are added at once, or with those that are `pending`.

///   x, y [num_rows, hidden_size] may alias; gamma, beta [hidden_size]; mean, rstd [num_rows] = for backward
template <typename T>
void layer_norm_forward(Context& context, const T* x, const float* gamma, const float* beta, T* y, float* mean,
                        float* rstd, int64_t num_rows, int64_t hidden_size, float eps);

///   d_x [num_rows, hidden_size] += with accumulate, else = (may then alias d_y); d_gamma +=, d_beta +=
///   d_x_sums null, or += the column sums of the new d_x [hidden_size]: the gradient of a bias that was added to x
template <typename T>
void layer_norm_backward(Context& context, const T* x, const float* gamma, const float* mean, const float* rstd,
                         const T* d_y, T* d_x, float* d_gamma, float* d_beta, int64_t num_rows, int64_t hidden_size,
                         bool accumulate, float* d_x_sums = nullptr, PendingSums* pending = nullptr);

template <typename T>
void rms_norm_forward(Context& context, const T* x, const float* gamma, T* y, float* rstd, int64_t num_rows,
                      int64_t hidden_size, float eps);

///   d_x, d_x_sums as above, d_gamma +=
template <typename T>
void rms_norm_backward(Context& context, const T* x, const float* gamma, const float* rstd, const T* d_y, T* d_x,
                       float* d_gamma, int64_t num_rows, int64_t hidden_size, bool accumulate,
                       float* d_x_sums = nullptr, PendingSums* pending = nullptr);

/// rms_norm of each head on its own, with one gain for all.
///   x [num_rows, x_stride], y [num_rows, y_stride]: num_heads heads [head_dim] from the start of each row; may alias
///   gamma [head_dim], rstd [num_rows, num_heads] = (or null)
template <typename T>
void rms_norm_heads_forward(Context& context, const T* x, int64_t x_stride, const float* gamma, T* y, int64_t y_stride,
                            float* rstd, int64_t num_rows, int64_t num_heads, int64_t head_dim, float eps);

///   d_y [num_rows, d_stride]: in, the gradient of y; out, of x. d_gamma +=
template <typename T>
void rms_norm_heads_backward(Context& context, const T* x, int64_t x_stride, const float* gamma, const float* rstd,
                             T* d_y, int64_t d_stride, float* d_gamma, int64_t num_rows, int64_t num_heads,
                             int64_t head_dim, PendingSums* pending = nullptr);

}  // namespace limbeck::cuda
