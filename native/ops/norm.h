#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Layer normalisation over the last axis: y = (x − mean)·rstd·gamma + beta. Two-pass variance; eps is added to the
/// variance. Ba et al. 2016, arXiv:1607.06450, eq. 4.
///   x, y [num_rows, hidden_size] may alias; gamma, beta [hidden_size]; mean, rstd [num_rows] saved for backward
void layer_norm_forward(Context& context, const float* x, const float* gamma, const float* beta, float* y, float* mean,
                        float* rstd, int64_t num_rows, int64_t hidden_size, float eps);

///   d_x [num_rows, hidden_size] +=, d_gamma +=, d_beta +=
void layer_norm_backward(Context& context, const float* x, const float* gamma, const float* mean, const float* rstd,
                         const float* d_y, float* d_x, float* d_gamma, float* d_beta, int64_t num_rows,
                         int64_t hidden_size);

/// Root-mean-square normalisation: y = x·rstd·gamma, rstd = 1/√(mean(x²) + eps). Zhang & Sennrich 2019,
/// arXiv:1910.07467, eq. 4.
void rms_norm_forward(Context& context, const float* x, const float* gamma, float* y, float* rstd, int64_t num_rows,
                      int64_t hidden_size, float eps);

///   d_x +=, d_gamma +=
void rms_norm_backward(Context& context, const float* x, const float* gamma, const float* rstd, const float* d_y,
                       float* d_x, float* d_gamma, int64_t num_rows, int64_t hidden_size);

}  // namespace limbeck
