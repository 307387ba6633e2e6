#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

enum class Activation { kGeluTanh, kGeluErf, kSwiglu };

/// Gaussian error linear unit, tanh form: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))). Hendrycks & Gimpel 2016,
/// arXiv:1606.08415, §2. x, y [count]; relative error of a few ulp for x ≥ −3,
/// growing to 1e-5 at −9.5; below −10.1 it is 0.
void gelu_tanh_forward(Context& context, const float* x, float* y, int64_t count);
///   d_x [count] = ; may alias d_y
void gelu_tanh_backward(Context& context, const float* x, const float* d_y, float* d_x, int64_t count);

/// The exact form: x·Φ(x) = 0.5·x·(1 + erf(x/√2)).
void gelu_erf_forward(Context& context, const float* x, float* y, int64_t count);
///   d_x [count] = ; may alias d_y
void gelu_erf_backward(Context& context, const float* x, const float* d_y, float* d_x, int64_t count);

/// SwiGLU: y = silu(gate)·up. Shazeer 2020, arXiv:2002.05202, eq. 6.
///   gate_up [num_rows, 2·intermediate_size] (gate columns, then up columns), y [num_rows, intermediate_size]
void swiglu_forward(Context& context, const float* gate_up, float* y, int64_t num_rows, int64_t intermediate_size);
///   d_gate_up =
void swiglu_backward(Context& context, const float* gate_up, const float* d_y, float* d_gate_up, int64_t num_rows,
                     int64_t intermediate_size);

/// Inverted dropout in place: element i is kept with probability 1 − probability and scaled by 1/(1 − probability);
/// the mask is a function of (seed, stream, first + i), so that the backward pass calls this again on the gradient.
void dropout(Context& context, float* x, int64_t count, float probability, uint64_t seed, uint64_t stream,
             uint64_t first = 0);

/// y[i] += x[i].
void add_in_place(Context& context, const float* x, float* y, int64_t count);

}  // namespace limbeck
