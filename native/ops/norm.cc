#include "ops/norm.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

// Rows of one task. Their parameter gradients are summed first, then those of the tasks in order: the same additions
// for every number of threads.
constexpr int64_t kTaskRows = 64;

int64_t num_tasks(int64_t num_rows) { return (num_rows + kTaskRows - 1) / kTaskRows; }

template <typename Row>
void for_each_row(Context& context, int64_t num_rows, Row&& row) {
  context.pool.parallel_for(num_tasks(num_rows), [&](int64_t task, int) {
    const int64_t end = std::min(num_rows, (task + 1) * kTaskRows);
    for (int64_t r = task * kTaskRows; r < end; ++r) row(r);
  });
}

/// row(r, partial) adds the parameter gradients of row r to partial [width]; total [width] += all of them.
template <typename Row>
void for_each_row_summing(Context& context, int64_t num_rows, int64_t width, float* partials, Row&& row) {
  context.pool.parallel_for(num_tasks(num_rows), [&](int64_t task, int) {
    float* partial = partials + task * width;
    std::memset(partial, 0, static_cast<size_t>(width) * sizeof(float));
    const int64_t end = std::min(num_rows, (task + 1) * kTaskRows);
    for (int64_t r = task * kTaskRows; r < end; ++r) row(r, partial);
  });
}

}  // namespace

void layer_norm_forward(Context& context, const float* x, const float* gamma, const float* beta, float* y, float* mean,
                        float* rstd, int64_t num_rows, int64_t hidden_size, float eps) {
  const CpuKernels& kernels = cpu_kernels();
  for_each_row(context, num_rows, [&](int64_t r) {
    rstd[r] =
        kernels.layer_norm_forward(x + r * hidden_size, gamma, beta, y + r * hidden_size, mean + r, hidden_size, eps);
  });
}

void layer_norm_backward(Context& context, const float* x, const float* gamma, const float* mean, const float* rstd,
                         const float* d_y, float* d_x, float* d_gamma, float* d_beta, int64_t num_rows,
                         int64_t hidden_size) {
  const CpuKernels& kernels = cpu_kernels();
  const Arena::Scope scope(context.scratch);
  const int64_t width = 2 * hidden_size;
  float* partials = context.scratch.allocate<float>(num_tasks(num_rows) * width);  // [tasks, d_gamma and d_beta]
  for_each_row_summing(context, num_rows, width, partials, [&](int64_t r, float* partial) {
    kernels.layer_norm_backward(x + r * hidden_size, gamma, mean[r], rstd[r], d_y + r * hidden_size,
                                d_x + r * hidden_size, partial, partial + hidden_size, hidden_size);
  });
  if (d_gamma != nullptr) kernels.add_rows(partials, width, num_tasks(num_rows), hidden_size, d_gamma);
  if (d_beta != nullptr) kernels.add_rows(partials + hidden_size, width, num_tasks(num_rows), hidden_size, d_beta);
}

void rms_norm_forward(Context& context, const float* x, const float* gamma, float* y, float* rstd, int64_t num_rows,
                      int64_t hidden_size, float eps) {
  const CpuKernels& kernels = cpu_kernels();
  for_each_row(context, num_rows, [&](int64_t r) {
    rstd[r] = kernels.rms_norm_forward(x + r * hidden_size, gamma, y + r * hidden_size, hidden_size, eps);
  });
}

void rms_norm_backward(Context& context, const float* x, const float* gamma, const float* rstd, const float* d_y,
                       float* d_x, float* d_gamma, int64_t num_rows, int64_t hidden_size) {
  const CpuKernels& kernels = cpu_kernels();
  const Arena::Scope scope(context.scratch);
  float* partials = context.scratch.allocate<float>(num_tasks(num_rows) * hidden_size);
  for_each_row_summing(context, num_rows, hidden_size, partials, [&](int64_t r, float* partial) {
    kernels.rms_norm_backward(x + r * hidden_size, gamma, rstd[r], d_y + r * hidden_size, d_x + r * hidden_size,
                              partial, hidden_size);
  });
  if (d_gamma != nullptr) kernels.add_rows(partials, hidden_size, num_tasks(num_rows), hidden_size, d_gamma);
}

void rms_norm_heads_forward(Context& context, const float* x, int64_t x_stride, const float* gamma, float* y,
                            int64_t y_stride, float* rstd, int64_t num_rows, int64_t num_heads, int64_t head_dim,
                            float eps) {
  const CpuKernels& kernels = cpu_kernels();
  for_each_row(context, num_rows, [&](int64_t r) {
    for (int64_t h = 0; h < num_heads; ++h) {
      rstd[r * num_heads + h] = kernels.rms_norm_forward(x + r * x_stride + h * head_dim, gamma,
                                                         y + r * y_stride + h * head_dim, head_dim, eps);
    }
  });
}

void rms_norm_heads_backward(Context& context, const float* x, int64_t x_stride, const float* gamma, const float* rstd,
                             float* d_y, int64_t d_y_stride, float* d_gamma, int64_t num_rows, int64_t num_heads,
                             int64_t head_dim) {
  const CpuKernels& kernels = cpu_kernels();
  const Arena::Scope scope(context.scratch);
  const int64_t size = num_heads * head_dim;
  float* partials = context.scratch.allocate<float>(num_tasks(num_rows) * head_dim);  // [tasks, d_gamma]
  float* d_x = context.scratch.allocate<float>(num_rows * size);                      // [num_rows, heads]
  for_each_row_summing(context, num_rows, head_dim, partials, [&](int64_t r, float* partial) {
    float* row = d_x + r * size;
    std::memset(row, 0, static_cast<size_t>(size) * sizeof(float));
    for (int64_t h = 0; h < num_heads; ++h) {
      kernels.rms_norm_backward(x + r * x_stride + h * head_dim, gamma, rstd[r * num_heads + h],
                                d_y + r * d_y_stride + h * head_dim, row + h * head_dim, partial, head_dim);
    }
    std::memcpy(d_y + r * d_y_stride, row, static_cast<size_t>(size) * sizeof(float));
  });
  if (d_gamma != nullptr) kernels.add_rows(partials, head_dim, num_tasks(num_rows), head_dim, d_gamma);
}

}  // namespace limbeck
