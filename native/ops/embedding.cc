#include "ops/embedding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "cpu/kernels.h"

namespace limbeck {
namespace {

constexpr int64_t kTaskRows = 128;
constexpr int64_t kTaskColumns = 32;

void check_ids(const int32_t* ids, int64_t num_rows, int64_t num_embeddings) {
  for (int64_t r = 0; r < num_rows; ++r) {
    if (ids[r] < 0 || ids[r] >= num_embeddings) {
      throw Error("ERR_INVALID_ARGUMENT", "id " + std::to_string(ids[r]) + " of row " + std::to_string(r) +
                                              " must be in [0, " + std::to_string(num_embeddings) + ")");
    }
  }
}

template <typename Row>
void for_each_row(Context& context, int64_t num_rows, Row&& row) {
  context.pool.parallel_for((num_rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int) {
    const int64_t end = std::min(num_rows, (task + 1) * kTaskRows);
    for (int64_t r = task * kTaskRows; r < end; ++r) row(r);
  });
}

}  // namespace

void embedding_forward(Context& context, const int32_t* ids, const float* table, float* y, int64_t num_rows,
                       int64_t hidden_size, int64_t num_embeddings) {
  check_ids(ids, num_rows, num_embeddings);
  for_each_row(context, num_rows, [&](int64_t r) {
    std::memcpy(y + r * hidden_size, table + ids[r] * hidden_size, static_cast<size_t>(hidden_size) * sizeof(float));
  });
}

void embedding_add_forward(Context& context, const int32_t* ids, const float* table, float* y, int64_t num_rows,
                           int64_t hidden_size, int64_t num_embeddings) {
  check_ids(ids, num_rows, num_embeddings);
  const auto add = cpu_kernels().add;
  for_each_row(context, num_rows,
               [&](int64_t r) { add(table + ids[r] * hidden_size, y + r * hidden_size, hidden_size); });
}

void embedding_backward(Context& context, const int32_t* ids, const float* d_y, float* d_table, int64_t num_rows,
                        int64_t hidden_size, int64_t num_embeddings) {
  check_ids(ids, num_rows, num_embeddings);
  // Two rows may meet in one row of the table, so the columns are shared out, not the rows.
  const auto add = cpu_kernels().add;
  context.pool.parallel_for((hidden_size + kTaskColumns - 1) / kTaskColumns, [&](int64_t task, int) {
    const int64_t column = task * kTaskColumns, columns = std::min(kTaskColumns, hidden_size - column);
    for (int64_t r = 0; r < num_rows; ++r) {
      add(d_y + r * hidden_size + column, d_table + ids[r] * hidden_size + column, columns);
    }
  });
}

void rotary(Context& context, float* x, const int32_t* position_ids, int64_t num_rows, int64_t row_stride,
            int64_t num_heads, int64_t head_dim, const double* frequencies, float scale, int direction) {
  if (num_rows == 0) return;
  const Arena::Scope scope(context.scratch);
  const int64_t half = head_dim / 2;
  const auto [lowest, highest] = std::minmax_element(position_ids, position_ids + num_rows);
  const int64_t first = *lowest, num_positions = int64_t{*highest} - first + 1;
  float* cosines = context.scratch.allocate<float>(num_positions * half);  // [positions, half]
  float* sines = context.scratch.allocate<float>(num_positions * half);
  context.pool.parallel_for(num_positions, [&](int64_t p, int) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(first + p) * frequencies[j];
      cosines[p * half + j] = static_cast<float>(scale * std::cos(angle));
      sines[p * half + j] = static_cast<float>(scale * direction * std::sin(angle));
    }
  });
  const auto rotate = cpu_kernels().rotate_heads;
  for_each_row(context, num_rows, [&](int64_t r) {
    const int64_t p = (position_ids[r] - first) * half;
    rotate(x + r * row_stride, num_heads, half, cosines + p, sines + p);
  });
}

}  // namespace limbeck
