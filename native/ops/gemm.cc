#include "ops/gemm.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

// Of A, a block of at most this many rows is packed at a time, and stays in the second-level cache.
constexpr int64_t kBlockRows = 84;
// Of B, at most this many words are packed at a time (4 MiB), and stay in the third-level cache; of one column at most
// kPackedDepth.
constexpr int64_t kPackedWords = int64_t{1} << 20;
constexpr int64_t kPackedDepth = 4096;
// With fewer rows than this, packing B costs more than it saves.
constexpr int64_t kMinPackedRows = 4;
constexpr int64_t kGemvColumns = 512;
// Tasks for every worker, so that one that is held up does not hold up the others.
constexpr int64_t kTasksPerWorker = 4;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

struct Gemm {
  int64_t m, n, k;
  MatrixView a, b;
  const float* bias;
  float* c;
  int64_t ldc;
  bool accumulate;
};

/// How a product is cut. Sums run over blocks of k in order, whatever the cut of rows and columns.
struct GemmPlan {
  /// is_packed: B is packed whole.
  GemmPlan(const GemmKernels& kernels, const Gemm& g, int num_workers, bool is_packed) {
    const int64_t words = divide_up(g.k, kernels.word_elements);
    const int64_t packed_words = is_packed ? words : std::min(words, kPackedDepth);
    packed_depth = packed_words * kernels.word_elements;
    // Even blocks, so that the last one is not a sliver.
    block_words = divide_up(packed_words, divide_up(packed_words, kernels.block_words));
    packed_columns = round_up(g.n, kernels.columns);
    if (!is_packed) {
      const int64_t most_panels = std::max<int64_t>(1, kPackedWords / (packed_words * kernels.columns));
      packed_columns = std::min(packed_columns, most_panels * kernels.columns);
    }
    row_tiles = divide_up(g.m, kernels.rows);
    const int64_t wanted = num_workers == 1 ? 1 : kTasksPerWorker * num_workers;
    num_row_blocks = std::max(divide_up(row_tiles, kBlockRows / kernels.rows), wanted);
    num_row_blocks = std::min(row_tiles, round_up(num_row_blocks, num_workers));
    block_tiles = divide_up(row_tiles, num_row_blocks);
    const int64_t panels = packed_columns / kernels.columns;
    num_column_groups = std::min(panels, divide_up(wanted, num_row_blocks));
    packed_a_floats = round_up(block_tiles * kernels.rows * block_words, 16);
    packed_b_floats = round_up(packed_columns * packed_words, 16);
  }

  int64_t packed_depth, block_words, packed_columns;
  int64_t row_tiles, num_row_blocks, block_tiles;
  int64_t num_column_groups;
  int64_t packed_a_floats, packed_b_floats;
};

/// part `index` of `count` even parts of [0, total)
int64_t part_begin(int64_t total, int64_t index, int64_t count) { return total * index / count; }

/// Packed columns of B: block after block of k, each panel after panel, so that a block begins at num_columns·(its
/// first word).
struct PackedColumns {
  const float* data;
  int64_t num_columns;  // with the padding of the last panel
};

/// Panels [begin, end) of B [depth, columns].
void pack_panels(const GemmKernels& kernels, MatrixView b, int64_t depth, int64_t columns, int64_t block_words,
                 int64_t begin, int64_t end, float* packed) {
  const int64_t padded = round_up(columns, kernels.columns), block_depth = block_words * kernels.word_elements;
  for (int64_t j = begin * kernels.columns; j < end * kernels.columns; j += kernels.columns) {
    for (int64_t p = 0; p < depth; p += block_depth) {
      const int64_t size = std::min(block_depth, depth - p);
      kernels.pack_b(b.data + p * b.row_stride + j * b.column_stride, b.column_stride, b.row_stride,
                     std::min(kernels.columns, columns - j), size,
                     packed + padded * (p / kernels.word_elements) + j * divide_up(size, kernels.word_elements));
    }
  }
}

/// Columns [column, column + columns) of C = or += rows [first, first + depth) of packed B.
/// packed_a [threads, packed_a_floats]
void multiply_packed(ThreadPool& pool, const GemmKernels& kernels, const GemmPlan& plan, const Gemm& g, int64_t column,
                     int64_t columns, int64_t first, int64_t depth, const PackedColumns& b, float* packed_a) {
  const int64_t block_depth = plan.block_words * kernels.word_elements;
  const int64_t num_panels = divide_up(columns, kernels.columns);
  pool.parallel_for(plan.num_row_blocks * plan.num_column_groups, [&](int64_t task, int worker) {
    const int64_t block = task / plan.num_column_groups, group = task % plan.num_column_groups;
    const int64_t row = part_begin(plan.row_tiles, block, plan.num_row_blocks) * kernels.rows;
    const int64_t end_row = std::min(g.m, part_begin(plan.row_tiles, block + 1, plan.num_row_blocks) * kernels.rows);
    const int64_t left = part_begin(num_panels, group, plan.num_column_groups) * kernels.columns;
    const int64_t right =
        std::min(columns, part_begin(num_panels, group + 1, plan.num_column_groups) * kernels.columns);
    if (left >= right) return;
    float* a_panels = packed_a + worker * plan.packed_a_floats;
    for (int64_t p = 0; p < depth; p += block_depth) {
      const int64_t size = std::min(block_depth, depth - p);
      const int64_t words = divide_up(size, kernels.word_elements);
      const float* a = g.a.data + (first + p) * g.a.column_stride;
      for (int64_t i = row; i < end_row; i += kernels.rows) {
        kernels.pack_a(a + i * g.a.row_stride, g.a.row_stride, g.a.column_stride, std::min(kernels.rows, end_row - i),
                       size, a_panels + (i - row) * words);
      }
      kernels.multiply(end_row - row, right - left, words, a_panels,
                       b.data + b.num_columns * (p / kernels.word_elements) + left * words,
                       g.bias == nullptr ? nullptr : g.bias + column + left, g.c + row * g.ldc + column + left, g.ldc,
                       g.accumulate || first + p > 0);
    }
  });
}

/// packed_b [packed_b_floats], packed_a [threads, packed_a_floats]
void multiply(ThreadPool& pool, const GemmKernels& kernels, const GemmPlan& plan, const Gemm& g, float* packed_b,
              float* packed_a) {
  for (int64_t column = 0; column < g.n; column += plan.packed_columns) {
    const int64_t columns = std::min(plan.packed_columns, g.n - column);
    const int64_t num_panels = divide_up(columns, kernels.columns);
    for (int64_t first = 0; first < g.k; first += plan.packed_depth) {
      const int64_t depth = std::min(plan.packed_depth, g.k - first);
      const MatrixView b{g.b.data + first * g.b.row_stride + column * g.b.column_stride, g.b.row_stride,
                         g.b.column_stride};
      pool.parallel_for(num_panels, [&](int64_t panel, int) {
        pack_panels(kernels, b, depth, columns, plan.block_words, panel, panel + 1, packed_b);
      });
      multiply_packed(pool, kernels, plan, g, column, columns, first, depth, {packed_b, num_panels * kernels.columns},
                      packed_a);
    }
  }
}

/// A few rows: each reads B as it lies.
void multiply_rows(ThreadPool& pool, const Gemm& g) {
  const CpuKernels& kernels = cpu_kernels();
  pool.parallel_for(divide_up(g.n, kGemvColumns), [&](int64_t block, int) {
    const int64_t column = block * kGemvColumns, columns = std::min(kGemvColumns, g.n - column);
    for (int64_t i = 0; i < g.m; ++i) {
      kernels.gemv(columns, g.k, g.a.data + i * g.a.row_stride, g.a.column_stride,
                   g.b.data + column * g.b.column_stride, g.b.row_stride, g.b.column_stride,
                   g.bias == nullptr ? nullptr : g.bias + column, g.c + i * g.ldc + column, g.accumulate);
    }
  });
}

}  // namespace

void gemm(Context& context, int64_t m, int64_t n, int64_t k, MatrixView a, MatrixView b, const float* bias, float* c,
          int64_t ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
  const Gemm g{m, n, k, a, b, bias, c, ldc, accumulate};
  if (k == 0) {
    for (int64_t i = 0; i < m && !accumulate; ++i) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = bias == nullptr ? 0.0f : bias[j];
    }
    return;
  }
  if (m < kMinPackedRows) return multiply_rows(context.pool, g);
  const GemmKernels& kernels =
      context.precision == Precision::kBFloat16 ? cpu_kernels().gemm_bfloat16 : cpu_kernels().gemm_float32;
  const GemmPlan plan(kernels, g, context.pool.num_threads(), false);
  const Arena::Scope scope(context.scratch);
  float* packed_b = context.scratch.allocate<float>(plan.packed_b_floats);
  float* packed_a = context.scratch.allocate<float>(plan.packed_a_floats * context.pool.num_threads());
  multiply(context.pool, kernels, plan, g, packed_b, packed_a);
}

PackedMatrix::PackedMatrix(MatrixView b, int64_t k, int64_t n) : k_(k), n_(n) {
  const GemmKernels& kernels = cpu_kernels().gemm_float32;
  const GemmPlan plan(kernels, {1, n, k, {}, b, nullptr, nullptr, n, false}, 1, true);
  data_ = allocate_floats(plan.packed_b_floats);
  pack_panels(kernels, b, k, n, plan.block_words, 0, divide_up(n, kernels.columns), data_.get());
}

void gemm_packed(Context& context, int64_t m, int64_t first_column, int64_t n, MatrixView a, const PackedMatrix& b,
                 const float* bias, float* c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  const GemmKernels& kernels = cpu_kernels().gemm_float32;
  const Gemm g{m, n, b.k_, a, {}, bias, c, ldc, false};
  const GemmPlan plan(kernels, g, context.pool.num_threads(), true);
  const Arena::Scope scope(context.scratch);
  float* packed_a = context.scratch.allocate<float>(plan.packed_a_floats * context.pool.num_threads());
  // A block of k begins at padded·(its first word), and in it the column first_column at first_column·(its words).
  const int64_t padded = round_up(b.n_, kernels.columns);
  for (int64_t first = 0; first < b.k_; first += plan.block_words) {
    const int64_t depth = std::min(plan.block_words, b.k_ - first);
    multiply_packed(context.pool, kernels, plan, g, 0, n, first, depth,
                    {b.data_.get() + padded * first + first_column * depth, padded}, packed_a);
  }
}

Precision fastest_precision() {
  static const Precision fastest = [] {
    constexpr int64_t kSize = 192, kRepeats = 5;
    ThreadPool pool(1);
    Arena scratch;
    std::vector<float> x(kSize * kSize, 1.0f), c(kSize * kSize);
    const auto best_time = [&](Precision precision) {
      Context context{pool, scratch, precision};
      auto best = std::chrono::steady_clock::duration::max();
      for (int64_t i = 0; i < kRepeats; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        gemm(context, kSize, kSize, kSize, {x.data(), kSize, 1}, {x.data(), kSize, 1}, nullptr, c.data(), kSize, false);
        best = std::min(best, std::chrono::steady_clock::now() - begin);
      }
      return best;
    };
    return best_time(Precision::kBFloat16) < best_time(Precision::kFloat32) ? Precision::kBFloat16
                                                                            : Precision::kFloat32;
  }();
  return fastest;
}

}  // namespace limbeck
