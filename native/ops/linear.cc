#include "ops/linear.h"

#include <algorithm>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

// A block of A (kBlockRows × kBlockDepth, 96 KiB) stays in the second-level cache while panels of B pass through the
// first; packed B (at most kPackedFloats) stays in the third.
constexpr int64_t kBlockDepth = 256;
constexpr int64_t kBlockRows = 84;  // a multiple of every register tile
constexpr int64_t kPackedFloats = int64_t{1} << 20;
// With fewer rows than this, packing B costs more than it saves.
constexpr int64_t kMinPackedRows = 4;
constexpr int64_t kGemvColumns = 512;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t depth(int64_t k) { return std::min(k, kBlockDepth); }

/// Columns of B that are packed at a time.
int64_t packed_columns(const CpuKernels& kernels, int64_t n, int64_t k) {
  const int64_t most = std::max<int64_t>(1, kPackedFloats / (std::max<int64_t>(depth(k), 1) * kernels.gemm_columns));
  return std::min(round_up(n, kernels.gemm_columns), most * kernels.gemm_columns);
}

int64_t packed_b_floats(const CpuKernels& kernels, int64_t n, int64_t k) {
  return round_up(packed_columns(kernels, n, k) * depth(k), 16);
}

int64_t packed_a_floats(int64_t k) { return round_up(kBlockRows * depth(k), 16); }

struct Gemm {
  int64_t m, n, k;
  MatrixView a, b;
  const float* bias;
  float* c;
  int64_t ldc;
  bool accumulate;
};

/// packed_b [packed_b_floats], packed_a [threads, packed_a_floats]
void multiply(ThreadPool& pool, const Gemm& g, float* packed_b, float* packed_a) {
  const CpuKernels& kernels = cpu_kernels();
  const int workers = pool.num_threads();
  if (g.k == 0) {
    for (int64_t i = 0; i < g.m && !g.accumulate; ++i) {
      for (int64_t j = 0; j < g.n; ++j) g.c[i * g.ldc + j] = g.bias == nullptr ? 0.0f : g.bias[j];
    }
    return;
  }
  if (g.m < kMinPackedRows) {
    pool.parallel_for((g.n + kGemvColumns - 1) / kGemvColumns, [&](int64_t block, int) {
      const int64_t column = block * kGemvColumns, columns = std::min(kGemvColumns, g.n - column);
      for (int64_t i = 0; i < g.m; ++i) {
        kernels.gemv(columns, g.k, g.a.data + i * g.a.row_stride, g.a.column_stride,
                     g.b.data + column * g.b.column_stride, g.b.row_stride, g.b.column_stride,
                     g.bias == nullptr ? nullptr : g.bias + column, g.c + i * g.ldc + column, g.accumulate);
      }
    });
    return;
  }
  const int64_t tile_rows = kernels.gemm_rows, tile_columns = kernels.gemm_columns;
  const int64_t block_columns = packed_columns(kernels, g.n, g.k);
  // Enough tasks for every worker; the sums do not depend on how C is cut.
  const int64_t block_rows = std::clamp(round_up((g.m + 3 * workers - 1) / (3 * workers), tile_rows), tile_rows,
                                        kBlockRows / tile_rows * tile_rows);
  const int64_t num_row_blocks = (g.m + block_rows - 1) / block_rows;
  for (int64_t column = 0; column < g.n; column += block_columns) {
    const int64_t columns = std::min(block_columns, g.n - column);
    const int64_t num_panels = (columns + tile_columns - 1) / tile_columns;
    const int64_t wanted_groups =
        num_row_blocks >= 2 * workers ? 1 : (2 * workers + num_row_blocks - 1) / num_row_blocks;
    const int64_t group_panels = std::max<int64_t>(4, (num_panels + wanted_groups - 1) / wanted_groups);
    const int64_t num_groups = (num_panels + group_panels - 1) / group_panels;
    for (int64_t first = 0; first < g.k; first += kBlockDepth) {
      const int64_t inner = std::min(kBlockDepth, g.k - first);
      const float* b = g.b.data + first * g.b.row_stride + column * g.b.column_stride;
      constexpr int64_t kPanelsPerTask = 4;
      pool.parallel_for((num_panels + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task, int) {
        const int64_t end = std::min(num_panels, (task + 1) * kPanelsPerTask);
        for (int64_t panel = task * kPanelsPerTask; panel < end; ++panel) {
          const int64_t j = panel * tile_columns;
          kernels.pack_b_panel(b + j * g.b.column_stride, g.b.column_stride, g.b.row_stride,
                               std::min(tile_columns, columns - j), inner, packed_b + j * inner);
        }
      });
      pool.parallel_for(num_row_blocks * num_groups, [&](int64_t task, int worker) {
        const int64_t row = task / num_groups * block_rows, rows = std::min(block_rows, g.m - row);
        const int64_t group_column = task % num_groups * group_panels * tile_columns;
        const int64_t group_columns = std::min(group_panels * tile_columns, columns - group_column);
        float* a_panels = packed_a + worker * packed_a_floats(g.k);
        const float* a = g.a.data + row * g.a.row_stride + first * g.a.column_stride;
        for (int64_t i = 0; i < rows; i += tile_rows) {
          kernels.pack_a_panel(a + i * g.a.row_stride, g.a.row_stride, g.a.column_stride, std::min(tile_rows, rows - i),
                               inner, a_panels + i * inner);
        }
        kernels.gemm_block(rows, group_columns, inner, a_panels, packed_b + group_column * inner,
                           g.bias == nullptr ? nullptr : g.bias + column + group_column,
                           g.c + row * g.ldc + column + group_column, g.ldc, g.accumulate || first > 0);
      });
    }
  }
}

}  // namespace

void gemm(Context& context, int64_t m, int64_t n, int64_t k, MatrixView a, MatrixView b, const float* bias, float* c,
          int64_t ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
  const CpuKernels& kernels = cpu_kernels();
  const Arena::Scope scope(context.scratch);
  float* packed_b = nullptr;
  float* packed_a = nullptr;
  if (m >= kMinPackedRows && k > 0) {
    packed_b = context.scratch.allocate<float>(packed_b_floats(kernels, n, k));
    packed_a = context.scratch.allocate<float>(packed_a_floats(k) * context.pool.num_threads());
  }
  multiply(context.pool, {m, n, k, a, b, bias, c, ldc, accumulate}, packed_b, packed_a);
}

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
