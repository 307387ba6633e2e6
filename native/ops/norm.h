#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Layer normalisation over the last axis: y = (x − mean)·rstd·gamma + beta. Two-pass variance; eps is added to the
/// variance. Ba et al. 2016, arXiv:1607.06450, eq. 4.
///   x, y [num_rows, hidden_size] may alias; gamma, beta [hidden_size]; mean, rstd [num_rows] saved for backward
void layer_norm_forward(Context& context, const float* x, const float* gamma, const float* beta, float* y, float* mean,
                        float* rstd, int64_t num_rows, int64_t hidden_size, float eps);

///   d_x [num_rows, hidden_size] +=, d_gamma += (or null), d_beta += (or null)
void layer_norm_backward(Context& context, const float* x, const float* gamma, const float* mean, const float* rstd,
                         const float* d_y, float* d_x, float* d_gamma, float* d_beta, int64_t num_rows,
                         int64_t hidden_size);

/// Root-mean-square normalisation: y = x·rstd·gamma, rstd = 1/√(mean(x²) + eps). Zhang & Sennrich 2019,
/// arXiv:1910.07467, eq. 4.
void rms_norm_forward(Context& context, const float* x, const float* gamma, float* y, float* rstd, int64_t num_rows,
                      int64_t hidden_size, float eps);

///   d_x +=, d_gamma += (or null)
void rms_norm_backward(Context& context, const float* x, const float* gamma, const float* rstd, const float* d_y,
                       float* d_x, float* d_gamma, int64_t num_rows, int64_t hidden_size);

/// rms_norm_forward of each head on its own, with one gain for all (queries and keys of Qwen3; Henry et al. 2020,
/// arXiv:2010.04245, §2). x and y point at the first of num_heads heads of the first row.
///   x [num_rows, x_stride], y [num_rows, y_stride] may alias; gamma [head_dim]; rstd [num_rows, num_heads] =
void rms_norm_heads_forward(Context& context, const float* x, int64_t x_stride, const float* gamma, float* y,
                            int64_t y_stride, float* rstd, int64_t num_rows, int64_t num_heads, int64_t head_dim,
                            float eps);

///   d_y [num_rows, d_y_stride] becomes the gradient of x in place; d_gamma += (or null)
void rms_norm_heads_backward(Context& context, const float* x, int64_t x_stride, const float* gamma, const float* rstd,
                             float* d_y, int64_t d_y_stride, float* d_gamma, int64_t num_rows, int64_t num_heads,
                             int64_t head_dim);

}  // namespace limbeck
