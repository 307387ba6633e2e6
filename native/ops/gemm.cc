#include "ops/gemm.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

// Of A, a block of at most this many rows is packed at a time, and stays in the second-level cache.
constexpr int64_t kBlockRows = 84;
// Of B, at most this many words are packed at a time (4 MiB), and stay in the third-level cache: rather all columns of
// a few k than all k of a few columns, since A is packed anew for every cut of the columns.
constexpr int64_t kPackedWords = int64_t{1} << 20;
// Panels of B that one task packs: rows of B that lie side by side are read that far.
constexpr int64_t kPackedPanels = 8;
// A packed B of at most this many words (512 KiB) each worker packs for itself: it lies in its own second-level cache,
// where another's would have to be fetched from, and nobody waits.
constexpr int64_t kPrivateWords = int64_t{1} << 17;
// With at most this many panels of B, packing A costs more than it saves.
constexpr int64_t kDirectPanels = 2;
constexpr int64_t kPageFloats = 1024;
// With fewer rows than this, packing B costs more than it saves.
constexpr int64_t kMinPackedRows = 4;
// What a task of few rows reads of B (256 KiB): long enough to be worth a task, short enough that threads end together.
constexpr int64_t kGemvFloats = int64_t{1} << 16;
constexpr int64_t kMinGemvColumns = 16, kMaxGemvColumns = 512;
// Tasks for every worker, so that one that is held up does not hold up the others.
constexpr int64_t kTasksPerWorker = 4;

const GemmKernels& kernels_of(Precision precision) {
  return precision == Precision::kBFloat16 ? cpu_kernels().gemm_bfloat16 : cpu_kernels().gemm_float32;
}

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

struct Gemm {
  int64_t m, n, k;
  MatrixView a, b;
  const float* bias;
  float* c;
  int64_t ldc;
  bool accumulate;
  Epilogue epilogue;
};

bool is_gated(const Gemm& g) { return g.epilogue.activated != nullptr && g.epilogue.activation == Activation::kSwiglu; }

/// How a product is cut. Sums run over blocks of k in order, whatever the cut of rows and columns.
struct GemmPlan {
  /// is_packed: B is packed whole.
  GemmPlan(const GemmKernels& kernels, const Gemm& g, int num_workers, bool is_packed) {
    const int64_t words = divide_up(g.k, kernels.word_elements);
    // Even blocks, so that the last one is not a sliver.
    block_words = divide_up(words, divide_up(words, kernels.block_words));
    packed_columns = round_up(g.n, kernels.columns);
    int64_t packed_words = words;
    if (!is_packed) {
      const int64_t most_panels = std::max<int64_t>(1, kPackedWords / (block_words * kernels.columns));
      packed_columns = std::min(packed_columns, most_panels * kernels.columns);
      packed_words = std::min(words, std::max<int64_t>(1, kPackedWords / (block_words * packed_columns)) * block_words);
    }
    packed_depth = packed_words * kernels.word_elements;
    row_tiles = divide_up(g.m, kernels.rows);
    const int64_t wanted = num_workers == 1 ? 1 : kTasksPerWorker * num_workers;
    num_row_blocks = std::max(divide_up(row_tiles, kBlockRows / kernels.rows), wanted);
    num_row_blocks = std::min(row_tiles, round_up(num_row_blocks, num_workers));
    block_tiles = divide_up(row_tiles, num_row_blocks);
    const int64_t panels = packed_columns / kernels.columns;
    num_column_groups = std::min(panels, divide_up(wanted, num_row_blocks));
    // Rows a multiple of a page apart would meet in a few sets of the first-level cache.
    const bool meets_in_cache = g.a.row_stride % kPageFloats == 0 && g.k > 1;
    const bool is_small = g.m < kMinPackedRows || divide_up(g.n, kernels.columns) <= kDirectPanels;
    if (is_small && kernels.multiply_rows != nullptr) {
      if (g.a.row_stride == 1) multiply_direct = kernels.multiply_columns;
      if (g.a.column_stride == 1 && !meets_in_cache) multiply_direct = kernels.multiply_rows;
    }
    const bool has_all_columns = packed_columns >= g.n;
    finishes_blocks = !is_gated(g) || (has_all_columns && g.n / 2 % kernels.columns == 0);
    packed_a_floats = multiply_direct != nullptr ? 0 : round_up(block_tiles * kernels.rows * block_words, 16);
    packed_b_floats = round_up(packed_columns * packed_words, 16);
    is_private =
        !is_packed && num_workers > 1 && has_all_columns && packed_words >= words && packed_b_floats <= kPrivateWords;
  }

  int64_t packed_depth, block_words, packed_columns;
  int64_t row_tiles, num_row_blocks, block_tiles;
  int64_t num_column_groups;
  int64_t packed_a_floats, packed_b_floats;
  bool finishes_blocks;                             // the epilogue is applied to blocks
  bool is_private;                                  // every worker packs a B of its own
  GemmKernels::Multiply multiply_direct = nullptr;  // instead of packing A
};

/// part `index` of `count` even parts of [0, total)
int64_t part_begin(int64_t total, int64_t index, int64_t count) { return total * index / count; }

/// Packed columns of B: block after block of k, each panel after panel, so that a block begins at num_columns·(its
/// first word).
struct PackedColumns {
  const float* data;
  int64_t num_columns;  // with the padding of the last panel
};

/// How B [depth, columns] is packed: in tasks that do not depend on each other.
struct PackPlan {
  PackPlan(const GemmKernels& kernels, MatrixView b, int64_t depth, int64_t columns, int64_t block_words)
      : kernels(kernels),
        b(b),
        depth(depth),
        columns(columns),
        padded(round_up(columns, kernels.columns)),
        block_depth(block_words * kernels.word_elements),
        num_groups(divide_up(padded / kernels.columns, kPackedPanels)),
        num_tasks(divide_up(depth, block_depth) * num_groups) {}

  void run(int64_t task, float* packed) const {
    const int64_t p = task / num_groups * block_depth, j = task % num_groups * kPackedPanels * kernels.columns;
    const int64_t size = std::min(block_depth, depth - p), words = divide_up(size, kernels.word_elements);
    kernels.pack_b(b.data + p * b.row_stride + j * b.column_stride, b.column_stride, b.row_stride,
                   std::min(kPackedPanels * kernels.columns, columns - j), size, words * kernels.columns,
                   packed + padded * (p / kernels.word_elements) + j * words);
  }

  const GemmKernels& kernels;
  MatrixView b;
  int64_t depth, columns, padded, block_depth, num_groups, num_tasks;
};

/// Rows [row, end_row) of columns [column, column + columns) of C are complete. Of SwiGLU these are the gates, and
/// their values, n/2 behind, are complete as well.
void finish(const Gemm& g, int64_t row, int64_t end_row, int64_t column, int64_t columns) {
  const CpuKernels& kernels = cpu_kernels();
  const Epilogue& epilogue = g.epilogue;
  for (; row < end_row; ++row) {
    float* c = g.c + row * g.ldc + column;
    if (epilogue.residual != nullptr) kernels.add(epilogue.residual + row * g.ldc + column, c, columns);
    if (epilogue.activated == nullptr) continue;
    switch (epilogue.activation) {
      case Activation::kGeluTanh:
        kernels.gelu_tanh_forward(c, epilogue.activated + row * g.n + column, columns);
        break;
      case Activation::kGeluErf:
        kernels.gelu_erf_forward(c, epilogue.activated + row * g.n + column, columns);
        break;
      case Activation::kSwiglu:
        kernels.swiglu_forward(c, c + g.n / 2, epilogue.activated + row * (g.n / 2) + column, columns);
        break;
    }
  }
}

/// Where the epilogue needs columns that are not complete together: when all of C is.
void finish_all(ThreadPool& pool, const Gemm& g) {
  if (g.epilogue.residual == nullptr && g.epilogue.activated == nullptr) return;
  pool.parallel_for(g.m, [&](int64_t row, int) { finish(g, row, row + 1, 0, is_gated(g) ? g.n / 2 : g.n); });
}

/// Columns [column, column + columns) of C = or += rows [first, first + depth) of packed B, which find_b gives a
/// worker. packed_a [threads, packed_a_floats]
template <typename FindB>
void multiply_packed(ThreadPool& pool, const GemmKernels& kernels, const GemmPlan& plan, const Gemm& g, int64_t column,
                     int64_t columns, int64_t first, int64_t depth, FindB&& find_b, float* packed_a) {
  const int64_t block_depth = plan.block_words * kernels.word_elements;
  const bool is_complete = plan.finishes_blocks && first + depth == g.k;
  // Columns of gates and of values are computed in pairs, this far apart.
  const int64_t pair = plan.finishes_blocks && is_gated(g) ? g.n / 2 : 0;
  const int64_t distributed = pair > 0 ? pair : columns, num_panels = divide_up(distributed, kernels.columns);
  pool.parallel_for(plan.num_row_blocks * plan.num_column_groups, [&](int64_t task, int worker) {
    const int64_t block = task / plan.num_column_groups, group = task % plan.num_column_groups;
    const int64_t row = part_begin(plan.row_tiles, block, plan.num_row_blocks) * kernels.rows;
    const int64_t end_row = std::min(g.m, part_begin(plan.row_tiles, block + 1, plan.num_row_blocks) * kernels.rows);
    const int64_t begin = part_begin(num_panels, group, plan.num_column_groups) * kernels.columns;
    const int64_t end =
        std::min(distributed, part_begin(num_panels, group + 1, plan.num_column_groups) * kernels.columns);
    if (begin >= end) return;
    const PackedColumns b = find_b(worker);
    float* a_panels = packed_a + worker * plan.packed_a_floats;
    for (int64_t p = 0; p < depth; p += block_depth) {
      const int64_t size = std::min(block_depth, depth - p);
      const int64_t words = divide_up(size, kernels.word_elements);
      const float* a = g.a.data + row * g.a.row_stride + (first + p) * g.a.column_stride;
      GemmKernels::Multiply multiply = plan.multiply_direct;
      int64_t a_stride = std::max(g.a.row_stride, g.a.column_stride);
      if (multiply == nullptr) {
        a_stride = kernels.rows * words;
        kernels.pack_a(a, g.a.row_stride, g.a.column_stride, end_row - row, size, a_stride, a_panels);
        a = a_panels;
        multiply = kernels.multiply;
      }
      const float* b_block = b.data + b.num_columns * (p / kernels.word_elements);
      const auto multiply_columns = [&](int64_t left, int64_t width) {
        multiply(end_row - row, width, words, a, a_stride, b_block + left * words,
                 g.bias == nullptr ? nullptr : g.bias + column + left, g.c + row * g.ldc + column + left, g.ldc,
                 g.accumulate || first + p > 0);
      };
      for (int64_t left = begin; left < end; left += kernels.group_columns) {
        const int64_t width = std::min(kernels.group_columns, end - left);
        multiply_columns(left, width);
        if (pair > 0) multiply_columns(pair + left, width);
        if (is_complete && p + size == depth) finish(g, row, end_row, column + left, width);
      }
    }
  });
}

/// packed_b [packed_b_floats], or [threads, packed_b_floats] when it is private; packed_a [threads, packed_a_floats]
void multiply(Context& context, const GemmKernels& kernels, const GemmPlan& plan, const Gemm& g, float* packed_b,
              float* packed_a) {
  ThreadPool& pool = context.pool;
  if (plan.is_private) {
    const PackPlan pack(kernels, g.b, g.k, g.n, plan.block_words);
    uint8_t* is_packed = context.scratch.allocate<uint8_t>(pool.num_threads());
    std::fill(is_packed, is_packed + pool.num_threads(), uint8_t{0});
    const auto find_b = [&](int worker) {
      float* own = packed_b + worker * plan.packed_b_floats;
      for (int64_t task = 0; is_packed[worker] == 0 && task < pack.num_tasks; ++task) pack.run(task, own);
      is_packed[worker] = 1;
      return PackedColumns{own, pack.padded};
    };
    return multiply_packed(pool, kernels, plan, g, 0, g.n, 0, g.k, find_b, packed_a);
  }
  for (int64_t column = 0; column < g.n; column += plan.packed_columns) {
    const int64_t columns = std::min(plan.packed_columns, g.n - column);
    for (int64_t first = 0; first < g.k; first += plan.packed_depth) {
      const int64_t depth = std::min(plan.packed_depth, g.k - first);
      const MatrixView b{g.b.data + first * g.b.row_stride + column * g.b.column_stride, g.b.row_stride,
                         g.b.column_stride};
      const PackPlan pack(kernels, b, depth, columns, plan.block_words);
      pool.parallel_for(pack.num_tasks, [&](int64_t task, int) { pack.run(task, packed_b); });
      multiply_packed(
          pool, kernels, plan, g, column, columns, first, depth,
          [&](int) {
            return PackedColumns{packed_b, pack.padded};
          },
          packed_a);
    }
  }
}

/// A few rows: each reads B as it lies.
void multiply_rows(ThreadPool& pool, const Gemm& g) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t block_columns =
      std::clamp(round_up(kGemvFloats / g.k, kMinGemvColumns), kMinGemvColumns, kMaxGemvColumns);
  pool.parallel_for(divide_up(g.n, block_columns), [&](int64_t block, int) {
    const int64_t column = block * block_columns, columns = std::min(block_columns, g.n - column);
    for (int64_t i = 0; i < g.m; ++i) {
      kernels.gemv(columns, g.k, g.a.data + i * g.a.row_stride, g.a.column_stride,
                   g.b.data + column * g.b.column_stride, g.b.row_stride, g.b.column_stride,
                   g.bias == nullptr ? nullptr : g.bias + column, g.c + i * g.ldc + column, g.accumulate);
    }
  });
}

}  // namespace

void gemm(Context& context, int64_t m, int64_t n, int64_t k, MatrixView a, MatrixView b, const float* bias, float* c,
          int64_t ldc, bool accumulate, const Epilogue& epilogue) {
  if (m <= 0 || n <= 0) return;
  const Gemm g{m, n, k, a, b, bias, c, ldc, accumulate, epilogue};
  if (k == 0) {
    for (int64_t i = 0; i < m && !accumulate; ++i) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = bias == nullptr ? 0.0f : bias[j];
    }
    return finish_all(context.pool, g);
  }
  if (m < kMinPackedRows) {
    multiply_rows(context.pool, g);
    return finish_all(context.pool, g);
  }
  const GemmKernels& kernels = kernels_of(context.precision);
  const GemmPlan plan(kernels, g, context.pool.num_threads(), false);
  const Arena::Scope scope(context.scratch);
  const int num_threads = context.pool.num_threads();
  float* packed_b = context.scratch.allocate<float>(plan.packed_b_floats * (plan.is_private ? num_threads : 1));
  float* packed_a = context.scratch.allocate<float>(plan.packed_a_floats * num_threads);
  multiply(context, kernels, plan, g, packed_b, packed_a);
  if (!plan.finishes_blocks) finish_all(context.pool, g);
}

namespace {

/// Floats that B [k, n] takes when it is packed whole.
int64_t packed_floats(const GemmKernels& kernels, int64_t k, int64_t n) {
  return GemmPlan(kernels, {1, n, k, {}, {}, nullptr, nullptr, n, false, {}}, 1, true).packed_b_floats;
}

}  // namespace

PackedMatrix::PackedMatrix(Context& context, MatrixView b, int64_t k, int64_t n)
    : k_(k),
      n_(n),
      precision_(context.precision),
      own_(allocate_floats(packed_floats(kernels_of(precision_), k, n))),
      data_(own_.get()) {
  pack(context, b);
}

PackedMatrix::PackedMatrix(Context& context, Arena& arena, MatrixView b, int64_t k, int64_t n)
    : k_(k),
      n_(n),
      precision_(context.precision),
      data_(arena.allocate<float>(packed_floats(kernels_of(precision_), k, n))) {
  pack(context, b);
}

void PackedMatrix::pack(Context& context, MatrixView b) {
  const GemmKernels& kernels = kernels_of(precision_);
  const GemmPlan plan(kernels, {1, n_, k_, {}, b, nullptr, nullptr, n_, false, {}}, 1, true);
  const PackPlan pack(kernels, b, k_, n_, plan.block_words);
  context.pool.parallel_for(pack.num_tasks, [&](int64_t task, int) { pack.run(task, data_); });
}

void gemm_packed(Context& context, int64_t m, int64_t first_column, int64_t n, MatrixView a, const PackedMatrix& b,
                 const float* bias, float* c, int64_t ldc, const Epilogue& epilogue) {
  if (m <= 0 || n <= 0) return;
  const GemmKernels& kernels = kernels_of(b.precision_);
  const Gemm g{m, n, b.k_, a, {}, bias, c, ldc, false, epilogue};
  const GemmPlan plan(kernels, g, context.pool.num_threads(), true);
  const Arena::Scope scope(context.scratch);
  float* packed_a = context.scratch.allocate<float>(plan.packed_a_floats * context.pool.num_threads());
  // In the block of k whose words begin at p, B begins at padded·p, and the column first_column at first_column·(the
  // words of the block) behind it.
  const int64_t padded = round_up(b.n_, kernels.columns), block_depth = plan.block_words * kernels.word_elements;
  for (int64_t first = 0; first < b.k_; first += block_depth) {
    const int64_t depth = std::min(block_depth, b.k_ - first);
    const float* block =
        b.data_ + padded * (first / kernels.word_elements) + first_column * divide_up(depth, kernels.word_elements);
    multiply_packed(
        context.pool, kernels, plan, g, 0, n, first, depth,
        [&](int) {
          return PackedColumns{block, padded};
        },
        packed_a);
  }
  if (!plan.finishes_blocks) finish_all(context.pool, g);
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
