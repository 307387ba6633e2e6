#include "ops/linear.h"

#include <algorithm>

#include "cpu/kernels.h"

namespace limbeck {

void linear_forward(Context& context, const float* x, const float* weight, const float* bias, float* y,
                    int64_t num_rows, int64_t in_features, int64_t out_features) {
  gemm(context, num_rows, out_features, in_features, {x, in_features, 1}, {weight, 1, in_features}, bias, y,
       out_features, false);
}

void add_row_sums(Context& context, const float* x, int64_t row_stride, int64_t num_rows, int64_t num_columns,
                  float* out) {
  constexpr int64_t kColumns = 64;
  const CpuKernels& kernels = cpu_kernels();
  context.pool.parallel_for((num_columns + kColumns - 1) / kColumns, [&](int64_t block, int) {
    const int64_t column = block * kColumns;
    kernels.add_rows(x + column, row_stride, num_rows, std::min(kColumns, num_columns - column), out + column);
  });
}

void linear_backward(Context& context, const float* x, const float* weight, const float* d_y, float* d_x,
                     float* d_weight, float* d_bias, int64_t num_rows, int64_t in_features, int64_t out_features) {
  if (d_weight != nullptr) {
    gemm(context, out_features, in_features, num_rows, {d_y, 1, out_features}, {x, in_features, 1}, nullptr, d_weight,
         in_features, true);
  }
  if (d_bias != nullptr) add_row_sums(context, d_y, out_features, num_rows, out_features, d_bias);
  if (d_x != nullptr) {
    gemm(context, num_rows, in_features, out_features, {d_y, out_features, 1}, {weight, in_features, 1}, nullptr, d_x,
         in_features, false);
  }
}

}  // namespace limbeck
