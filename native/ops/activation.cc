#include "ops/activation.h"

#include <algorithm>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

constexpr int64_t kTaskFloats = 8192;  // 32 KiB: a task's output fits the first-level cache

/// task(begin, count) over pieces of [0, count).
template <typename Task>
void for_each_piece(Context& context, int64_t count, Task&& task) {
  context.pool.parallel_for((count + kTaskFloats - 1) / kTaskFloats, [&](int64_t index, int) {
    const int64_t begin = index * kTaskFloats;
    task(begin, std::min(kTaskFloats, count - begin));
  });
}

template <typename Row>
void for_each_row(Context& context, int64_t num_rows, int64_t row_floats, Row&& row) {
  const int64_t task_rows = std::max<int64_t>(1, kTaskFloats / std::max<int64_t>(1, row_floats));
  context.pool.parallel_for((num_rows + task_rows - 1) / task_rows, [&](int64_t task, int) {
    const int64_t end = std::min(num_rows, (task + 1) * task_rows);
    for (int64_t r = task * task_rows; r < end; ++r) row(r);
  });
}

}  // namespace

void gelu_tanh_forward(Context& context, const float* x, float* y, int64_t count) {
  const auto kernel = cpu_kernels().gelu_tanh_forward;
  for_each_piece(context, count, [&](int64_t begin, int64_t size) { kernel(x + begin, y + begin, size); });
}

void gelu_tanh_backward(Context& context, const float* x, const float* d_y, float* d_x, int64_t count) {
  const auto kernel = cpu_kernels().gelu_tanh_backward;
  for_each_piece(context, count,
                 [&](int64_t begin, int64_t size) { kernel(x + begin, d_y + begin, d_x + begin, size); });
}

void gelu_erf_forward(Context& context, const float* x, float* y, int64_t count) {
  const auto kernel = cpu_kernels().gelu_erf_forward;
  for_each_piece(context, count, [&](int64_t begin, int64_t size) { kernel(x + begin, y + begin, size); });
}

void gelu_erf_backward(Context& context, const float* x, const float* d_y, float* d_x, int64_t count) {
  const auto kernel = cpu_kernels().gelu_erf_backward;
  for_each_piece(context, count,
                 [&](int64_t begin, int64_t size) { kernel(x + begin, d_y + begin, d_x + begin, size); });
}

void swiglu_forward(Context& context, const float* gate_up, float* y, int64_t num_rows, int64_t intermediate_size) {
  const auto kernel = cpu_kernels().swiglu_forward;
  for_each_row(context, num_rows, intermediate_size, [&](int64_t r) {
    const float* gate = gate_up + 2 * r * intermediate_size;
    kernel(gate, gate + intermediate_size, y + r * intermediate_size, intermediate_size);
  });
}

void swiglu_backward(Context& context, const float* gate_up, const float* d_y, float* d_gate_up, int64_t num_rows,
                     int64_t intermediate_size) {
  const auto kernel = cpu_kernels().swiglu_backward;
  for_each_row(context, num_rows, intermediate_size, [&](int64_t r) {
    kernel(gate_up + 2 * r * intermediate_size, d_y + r * intermediate_size, d_gate_up + 2 * r * intermediate_size,
           intermediate_size);
  });
}

void dropout(Context& context, float* x, int64_t count, float probability, uint64_t seed, uint64_t stream,
             uint64_t first) {
  if (probability <= 0) return;
  const auto kernel = cpu_kernels().dropout;
  for_each_piece(context, count, [&](int64_t begin, int64_t size) {
    kernel(x + begin, first + static_cast<uint64_t>(begin), size, probability, seed, stream);
  });
}

void add_in_place(Context& context, const float* x, float* y, int64_t count) {
  const auto kernel = cpu_kernels().add;
  for_each_piece(context, count, [&](int64_t begin, int64_t size) { kernel(x + begin, y + begin, size); });
}

}  // namespace limbeck
