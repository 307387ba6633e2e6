#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/optimizer.h"

namespace limbeck {

// What linear.h, norm.h, activation.h, embedding.h and optimizer.h define, in plain loops over one number type: the
// specification of those ops, compared with in tests. Shapes are those of the op.

/// A MatrixView (ops/gemm.h) of any number type.
template <typename T>
struct ReferenceMatrix {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;

  T operator()(int64_t i, int64_t j) const { return data[i * row_stride + j * column_stride]; }
};

/// bias is added where C is written, not where it is accumulated.
template <typename T>
void reference_gemm(int64_t m, int64_t n, int64_t k, ReferenceMatrix<T> a, ReferenceMatrix<T> b, const T* bias, T* c,
                    int64_t ldc, bool accumulate) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T sum = accumulate ? c[i * ldc + j] : bias == nullptr ? T(0) : bias[j];
      for (int64_t p = 0; p < k; ++p) sum += a(i, p) * b(p, j);
      c[i * ldc + j] = sum;
    }
  }
}

template <typename T>
void reference_layer_norm_forward(const T* x, const T* gamma, const T* beta, T* y, T* mean, T* rstd, int64_t num_rows,
                                  int64_t hidden_size, T eps) {
  for (int64_t r = 0; r < num_rows; ++r, x += hidden_size, y += hidden_size) {
    T sum = 0, squares = 0;
    for (int64_t j = 0; j < hidden_size; ++j) sum += x[j];
    mean[r] = sum / static_cast<T>(hidden_size);
    for (int64_t j = 0; j < hidden_size; ++j) squares += (x[j] - mean[r]) * (x[j] - mean[r]);
    rstd[r] = 1 / std::sqrt(squares / static_cast<T>(hidden_size) + eps);
    for (int64_t j = 0; j < hidden_size; ++j) y[j] = (x[j] - mean[r]) * rstd[r] * gamma[j] + beta[j];
  }
}

template <typename T>
void reference_rms_norm_forward(const T* x, const T* gamma, T* y, T* rstd, int64_t num_rows, int64_t hidden_size,
                                T eps) {
  for (int64_t r = 0; r < num_rows; ++r, x += hidden_size, y += hidden_size) {
    T squares = 0;
    for (int64_t j = 0; j < hidden_size; ++j) squares += x[j] * x[j];
    rstd[r] = 1 / std::sqrt(squares / static_cast<T>(hidden_size) + eps);
    for (int64_t j = 0; j < hidden_size; ++j) y[j] = x[j] * rstd[r] * gamma[j];
  }
}

/// 0.5·x·(1 + tanh u) written as x/(1 + e⁻²ᵘ), which keeps the digits of the negative tail.
template <typename T>
T reference_gelu_tanh(T x) {
  const T u = static_cast<T>(0.79788456080286535588) * (x + static_cast<T>(0.044715) * x * x * x);
  return x / (1 + std::exp(-2 * u));
}

template <typename T>
T reference_gelu_erf(T x) {
  return x * std::erfc(-x * static_cast<T>(0.70710678118654752440)) / 2;
}

template <typename T>
T reference_swiglu(T gate, T up) {
  return gate / (1 + std::exp(-gate)) * up;
}

template <typename T>
void reference_rotary(T* x, const int32_t* position_ids, int64_t num_rows, int64_t row_stride, int64_t num_heads,
                      int64_t head_dim, const T* frequencies, T scale, int direction) {
  const int64_t half = head_dim / 2;
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t h = 0; h < num_heads; ++h) {
      T* head = x + r * row_stride + h * head_dim;
      for (int64_t j = 0; j < half; ++j) {
        const T angle = static_cast<T>(direction * position_ids[r]) * frequencies[j];
        const T low = scale * head[j], high = scale * head[j + half];
        head[j] = low * std::cos(angle) - high * std::sin(angle);
        head[j + half] = high * std::cos(angle) + low * std::sin(angle);
      }
    }
  }
}

template <typename T>
void reference_adamw(T* parameters, const T* gradients, T* first, T* second, int64_t count,
                     const AdamWOptions& options) {
  const T beta1 = options.beta1, beta2 = options.beta2, learning_rate = options.learning_rate;
  const T step = static_cast<T>(options.step);
  for (int64_t i = 0; i < count; ++i) {
    const T gradient = gradients[i] * options.grad_scale;
    first[i] = beta1 * first[i] + (1 - beta1) * gradient;
    second[i] = beta2 * second[i] + (1 - beta2) * gradient * gradient;
    const T corrected_first = first[i] / (1 - std::pow(beta1, step));
    const T corrected_second = second[i] / (1 - std::pow(beta2, step));
    parameters[i] *= 1 - learning_rate * options.weight_decay;
    parameters[i] -= learning_rate * corrected_first / (std::sqrt(corrected_second) + options.epsilon);
  }
}

template <typename T>
void reference_sgd(T* parameters, const T* gradients, T* buffer, int64_t count, const SgdOptions& options) {
  const T learning_rate = options.learning_rate;
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = options.momentum * buffer[i] + gradients[i] * options.grad_scale;
    parameters[i] = parameters[i] * (1 - learning_rate * options.weight_decay) - learning_rate * buffer[i];
  }
}

/// d objective(x) / dx by central differences, exact to about 1e-9 where x and the objective's derivatives are near 1.
template <typename Objective>
std::vector<double> central_differences(std::vector<double> x, Objective&& objective) {
  constexpr double kStep = 1e-5;
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double center = x[i];
    x[i] = center + kStep;
    const double above = objective(x);
    x[i] = center - kStep;
    gradient[i] = (above - objective(x)) / (2 * kStep);
    x[i] = center;
  }
  return gradient;
}

/// Largest |out − expected|/(|expected| + magnitude); infinite where that is no number or the lengths differ.
inline double largest_error(const std::vector<float>& out, const std::vector<double>& expected, double magnitude) {
  if (out.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double error = std::fabs(out[i] - expected[i]) / (std::fabs(expected[i]) + magnitude);
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    if (error > largest) largest = error;
  }
  return largest;
}

}  // namespace limbeck
