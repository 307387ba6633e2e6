#include "ops/optimizer.h"

#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

constexpr int64_t kTaskFloats = 16384;

int64_t num_tasks(int64_t count) { return (count + kTaskFloats - 1) / kTaskFloats; }

template <typename Task>
void for_each_piece(Context& context, int64_t count, Task&& task) {
  context.pool.parallel_for(num_tasks(count), [&](int64_t index, int) {
    const int64_t begin = index * kTaskFloats;
    task(begin, std::min(kTaskFloats, count - begin), index);
  });
}

/// Σ x², the pieces added in order.
template <typename Piece>
double sum_of_pieces(Context& context, int64_t count, Piece&& piece) {
  const Arena::Scope scope(context.scratch);
  double* sums = context.scratch.allocate<double>(num_tasks(count));
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t index) { sums[index] = piece(begin, size); });
  double total = 0;
  for (int64_t i = 0; i < num_tasks(count); ++i) total += sums[i];
  return total;
}

}  // namespace

double global_norm(Context& context, const float* x, int64_t count) {
  const auto square_sum = cpu_kernels().square_sum;
  return std::sqrt(
      sum_of_pieces(context, count, [&](int64_t begin, int64_t size) { return square_sum(x + begin, size); }));
}

void adamw(Context& context, float* parameters, const float* gradients, float* first, float* second, int64_t count,
           const AdamWOptions& options) {
  const double step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(static_cast<double>(options.beta1), step);
  const double correction2 = 1 - std::pow(static_cast<double>(options.beta2), step);
  AdamWUpdate update{};
  update.beta1 = options.beta1;
  update.one_minus_beta1 = 1 - options.beta1;
  update.beta2 = options.beta2;
  update.one_minus_beta2 = 1 - options.beta2;
  update.epsilon = options.epsilon;
  update.step_size = static_cast<float>(options.learning_rate / correction1);
  update.inverse_root_correction = static_cast<float>(1 / std::sqrt(correction2));
  update.decay = 1 - options.learning_rate * options.weight_decay;
  update.grad_scale = options.grad_scale;
  const auto kernel = cpu_kernels().adamw;
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t) {
    kernel(update, parameters + begin, gradients + begin, first + begin, second + begin, size);
  });
}

void sgd(Context& context, float* parameters, const float* gradients, float* buffer, int64_t count,
         const SgdOptions& options) {
  const SgdUpdate update{options.learning_rate, options.momentum, 1 - options.learning_rate * options.weight_decay,
                         options.grad_scale};
  const auto kernel = cpu_kernels().sgd;
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t) {
    kernel(update, parameters + begin, gradients + begin, buffer + begin, size);
  });
}

void interpolate(Context& context, float* parameters, const float* target, int64_t count, float alpha) {
  if (alpha == 1) {  // θ + (φ − θ) need not be φ in floating point
    std::copy_n(target, count, parameters);
    return;
  }
  const auto kernel = cpu_kernels().interpolate;
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t) {
    kernel(parameters + begin, target + begin, size, alpha);
  });
}

void interpolate_weighted(Context& context, float* parameters, const float* target, const float* weights, int64_t count,
                          float alpha) {
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t) {
    for (int64_t i = begin; i < begin + size; ++i) {
      const float rate = alpha * weights[i];
      // θ + (φ − θ) need not be φ in floating point.
      parameters[i] = rate == 1 ? target[i] : parameters[i] + rate * (target[i] - parameters[i]);
    }
  });
}

void add_squares(Context& context, float* sums, const float* x, int64_t count) {
  for_each_piece(context, count, [&](int64_t begin, int64_t size, int64_t) {
    for (int64_t i = begin; i < begin + size; ++i) sums[i] += x[i] * x[i];
  });
}

double squared_error(Context& context, float* student, const float* teacher, int64_t count) {
  const CpuKernels& kernels = cpu_kernels();
  return sum_of_pieces(context, count, [&](int64_t begin, int64_t size) {
    kernels.subtract(teacher + begin, student + begin, size);
    return kernels.square_sum(student + begin, size);
  });
}

}  // namespace limbeck
