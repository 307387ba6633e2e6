#include "ops/logit_blocks.h"

#include <algorithm>
#include <vector>

#include "ops/gemm.h"

namespace limbeck {
namespace {

// Packed columns of a block (4 MiB at most) stay in the third-level cache, narrow ones in the second-level caches, as
// do the logits of a task.
constexpr int64_t kBlockFloats = int64_t{1} << 20;
constexpr int64_t kMinBlockColumns = 256, kMaxBlockColumns = 2048;
constexpr int64_t kTaskRows = 28;  // whole tiles of products
// Between rows of logits, which would else lie a multiple of a page apart and meet in a few sets of the cache.
constexpr int64_t kPadding = 16;

}  // namespace

void for_each_logit_block(Context& context, const float* x, const float* table, const float* bias, int64_t num_rows,
                          int64_t d, int64_t num_columns, const VisitLogits& visit) {
  const int64_t block_columns =
      std::clamp(kBlockFloats / d / kPackedColumns * kPackedColumns, kMinBlockColumns, kMaxBlockColumns);
  const int num_threads = context.pool.num_threads();
  const int64_t num_tasks = (num_rows + kTaskRows - 1) / kTaskRows;
  ThreadPool alone(1);
  std::vector<Arena> scratch(static_cast<size_t>(num_threads));
  for (int64_t first = 0; first < num_columns; first += block_columns) {
    const int64_t count = std::min(block_columns, num_columns - first), ld = count + kPadding;
    const Arena::Scope scope(context.scratch);
    const PackedMatrix block(context, context.scratch, {table + first * d, 1, d}, d, count);
    const float* block_bias = bias == nullptr ? nullptr : bias + first;
    if (num_tasks < num_threads) {
      // Threads that multiply a few rows each would all read the whole block: rather a few columns each.
      float* logits = context.scratch.allocate<float>(num_rows * ld);  // [num_rows, ld]
      gemm_packed(context, num_rows, 0, count, {x, d, 1}, block, block_bias, logits, ld);
      context.pool.parallel_for(num_rows, [&](int64_t row, int) { visit(row, logits + row * ld, first, count); });
      continue;
    }
    context.pool.parallel_for(num_tasks, [&](int64_t task, int worker) {
      Context own{alone, scratch[static_cast<size_t>(worker)], context.precision};
      const Arena::Scope own_scope(own.scratch);
      const int64_t begin = num_rows * task / num_tasks, end = num_rows * (task + 1) / num_tasks;
      float* logits = own.scratch.allocate<float>((end - begin) * ld);  // [end − begin, ld]
      gemm_packed(own, end - begin, 0, count, {x + begin * d, d, 1}, block, block_bias, logits, ld);
      for (int64_t row = begin; row < end; ++row) visit(row, logits + (row - begin) * ld, first, count);
    });
  }
}

}  // namespace limbeck
