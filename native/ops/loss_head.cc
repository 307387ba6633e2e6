#include "ops/loss_head.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "core/error.h"
#include "cpu/kernels.h"
#include "cpu/loss.h"
#include "ops/gemm.h"

namespace limbeck {
namespace {

// Each chunk of logits reads the table twice, and its gradient once, so that few rows mean many passes over both;
// beyond this size (100 MiB, or 1,024 rows) nothing is gained.
constexpr int64_t kChunkFloats = (int64_t{100} << 20) / sizeof(float);
constexpr int64_t kMinChunkRows = 128, kMaxChunkRows = 1024;
// A table of at most 4 MiB is packed once for all chunks, and with 12 MiB of logits stays in the third-level cache.
constexpr int64_t kCachedTableFloats = (int64_t{4} << 20) / sizeof(float);
constexpr int64_t kCachedChunkFloats = (int64_t{12} << 20) / sizeof(float);

bool stays_in_cache(int64_t vocab_size, int64_t hidden_size) {
  return vocab_size * hidden_size <= kCachedTableFloats && vocab_size * kMinChunkRows <= kCachedChunkFloats;
}

int64_t chunk_row_count(int64_t num_rows, int64_t vocab_size, int64_t chunk_floats) {
  const int64_t rows = std::clamp(chunk_floats / vocab_size / 8 * 8, kMinChunkRows, kMaxChunkRows);
  // Even chunks, so that the last one is not a sliver.
  const int64_t num_chunks = (num_rows + rows - 1) / rows;
  return (num_rows + num_chunks - 1) / num_chunks;
}

void check_options(const LossHeadOptions& options, const TeacherLogits& teacher, const uint8_t* allowed) {
  if (!(options.temperature > 0)) {
    throw Error("ERR_INVALID_ARGUMENT",
                "temperature must be greater than 0, got " + std::to_string(options.temperature));
  }
  if ((teacher.dense != nullptr) + (teacher.hidden != nullptr) + (teacher.top_k > 0) > 1) {
    throw Error("ERR_INVALID_ARGUMENT", "teacher logits must come from one source: dense, factorised or top-k");
  }
  if (teacher.present() && allowed) {
    throw Error("ERR_INVALID_ARGUMENT",
                "sampled softmax cannot be combined with a teacher, whose logits cover every column. Drop one of them");
  }
}

void check_labels(const int32_t* labels, int64_t num_rows, int64_t vocab_size) {
  for (int64_t r = 0; r < num_rows; ++r) {
    if (labels[r] < 0 || labels[r] >= vocab_size) {
      throw Error("ERR_INVALID_ARGUMENT", "label of row " + std::to_string(r) + " must be in [0, " +
                                              std::to_string(vocab_size) + "), got " + std::to_string(labels[r]));
    }
  }
}

/// Entries of a row before the first −1.
int64_t listed_count(const int32_t* indices, int64_t top_k) {
  return std::find(indices, indices + top_k, -1) - indices;
}

/// The indices of a row must be distinct columns, because the rest class is what they leave, and −1 ends them.
void check_top_k(Arena& scratch, const TeacherLogits& teacher, int64_t num_rows, int64_t vocab_size) {
  Arena::Scope scope(scratch);
  int64_t limit = vocab_size;
  if (teacher.classes != nullptr) {
    limit = teacher.num_classes;
    const bool fits = limit >= 1 && limit <= vocab_size && teacher.top_k <= limit &&
                      std::all_of(teacher.classes, teacher.classes + vocab_size,
                                  [limit](int32_t index) { return index >= 0 && index < limit; });
    if (!fits) {
      throw Error("ERR_INVALID_ARGUMENT", "classes must be in [0, num_classes) and num_classes in [top_k, " +
                                              std::to_string(vocab_size) +
                                              "], got num_classes = " + std::to_string(limit));
    }
  }
  int64_t* seen_in_row = scratch.allocate<int64_t>(limit);
  std::fill(seen_in_row, seen_in_row + limit, int64_t{-1});
  for (int64_t r = 0; r < num_rows; ++r) {
    const int32_t* indices = teacher.top_k_indices + r * teacher.top_k;
    const int64_t count = listed_count(indices, teacher.top_k);
    for (int64_t i = 0; i < teacher.top_k; ++i) {
      const int32_t index = indices[i];
      if (i >= count && index == -1) continue;
      if (i >= count || index < 0 || index >= limit || seen_in_row[index] == r) {
        throw Error("ERR_INVALID_ARGUMENT", "top-k indices of row " + std::to_string(r) +
                                                " must be distinct and in [0, " + std::to_string(limit) +
                                                "), filled up with -1, got " + std::to_string(index));
      }
      seen_in_row[index] = r;
    }
  }
}

}  // namespace

LossHeadResult loss_head(Context& context, const float* hidden, const float* table, const float* bias,
                         const int32_t* labels, const TeacherLogits& teacher, const LossHeadOptions& options,
                         double row_scale, const uint8_t* allowed, float* d_hidden, float* d_table, float* d_bias,
                         int64_t num_rows, int64_t hidden_size, int64_t vocab_size) {
  check_options(options, teacher, allowed);
  check_labels(labels, num_rows, vocab_size);
  LossHeadResult result;
  if (num_rows == 0) return result;
  const bool has_teacher = teacher.present() && options.kd_weight != 0;
  if (options.ce_weight == 0 && !has_teacher) {
    if (d_hidden) std::fill(d_hidden, d_hidden + num_rows * hidden_size, 0.0f);
    return result;
  }
  Arena& scratch = context.scratch;
  Arena::Scope scope(scratch);
  if (has_teacher && teacher.top_k > 0) check_top_k(scratch, teacher, num_rows, vocab_size);

  const CpuKernels& kernels = cpu_kernels();
  const bool is_factorised = has_teacher && teacher.hidden;
  // Smaller chunks would read a teacher's table more often.
  const bool is_cached = stays_in_cache(vocab_size, hidden_size) && !is_factorised;
  const int64_t chunk_rows = chunk_row_count(num_rows, vocab_size, is_cached ? kCachedChunkFloats : kChunkFloats);
  const MatrixView to_logits{table, 1, hidden_size}, to_hidden{table, hidden_size, 1};
  std::optional<PackedMatrix> packed_to_logits, packed_to_hidden;
  if (is_cached) {
    packed_to_logits.emplace(context, scratch, to_logits, hidden_size, vocab_size);
    if (d_hidden) packed_to_hidden.emplace(context, scratch, to_hidden, vocab_size, hidden_size);
  }
  const int64_t row_scratch_floats = loss_row_scratch_floats(vocab_size, has_teacher ? teacher.top_k : 0);
  float* logits = scratch.allocate<float>(chunk_rows * vocab_size);
  float* teacher_logits = is_factorised ? scratch.allocate<float>(chunk_rows * vocab_size) : nullptr;
  float* row_scratch = scratch.allocate<float>(row_scratch_floats * context.pool.num_threads());
  LossRowValue* values = scratch.allocate<LossRowValue>(chunk_rows);
  float* mask = nullptr;
  if (allowed) {
    mask = scratch.allocate<float>(vocab_size);
    for (int64_t v = 0; v < vocab_size; ++v) mask[v] = allowed[v] ? 0 : -std::numeric_limits<float>::infinity();
  }

  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    const float* chunk_hidden = hidden + begin * hidden_size;
    const MatrixView hidden_rows{chunk_hidden, hidden_size, 1}, logit_rows{logits, vocab_size, 1};
    if (is_cached) {
      gemm_packed(context, rows, 0, vocab_size, hidden_rows, *packed_to_logits, bias, logits, vocab_size);
    } else {
      gemm(context, rows, vocab_size, hidden_size, hidden_rows, to_logits, bias, logits, vocab_size, false);
    }
    if (is_factorised) {
      const int64_t width = teacher.teacher_hidden_size;
      gemm(context, rows, vocab_size, width, {teacher.hidden + begin * width, width, 1}, {teacher.table, 1, width},
           teacher.bias, teacher_logits, vocab_size, false);
    }

    context.pool.parallel_for(rows, [&](int64_t r, int worker) {
      LossRow row{};
      row.logits = logits + r * vocab_size;
      row.mask = mask;
      row.vocab_size = vocab_size;
      row.label = labels[begin + r];
      row.ce_weight = options.ce_weight;
      row.temperature = options.temperature;
      row.grad_scale = static_cast<float>(row_scale);
      row.wants_gradient = d_hidden != nullptr;
      if (has_teacher) {
        row.kd_weight = options.kd_weight;
        row.fusion = options.fusion;
        row.gate = options.gate;
        if (is_factorised) row.teacher = teacher_logits + r * vocab_size;
        if (teacher.dense) {
          const int64_t dense_row = teacher.dense_rows ? teacher.dense_rows[begin + r] : begin + r;
          row.teacher = teacher.dense + dense_row * vocab_size;
        }
        if (teacher.top_k > 0) {
          row.top_k_indices = teacher.top_k_indices + (begin + r) * teacher.top_k;
          row.top_k = listed_count(row.top_k_indices, teacher.top_k);
          row.top_k_values = teacher.top_k_values + (begin + r) * teacher.top_k;
          row.teacher_log_sum_exp = teacher.log_sum_exp[begin + r];
          row.classes = teacher.classes;
          row.num_classes = teacher.classes != nullptr ? teacher.num_classes : vocab_size;
        }
      }
      values[r] = kernels.loss_row(row, row_scratch + worker * row_scratch_floats);
    });
    for (int64_t r = 0; r < rows; ++r) {
      result.ce_sum += values[r].cross_entropy;
      result.kd_sum += values[r].distillation;
    }
    if (!d_hidden) continue;

    float* chunk_d_hidden = d_hidden + begin * hidden_size;
    if (is_cached) {
      gemm_packed(context, rows, 0, hidden_size, logit_rows, *packed_to_hidden, nullptr, chunk_d_hidden, hidden_size);
    } else {
      gemm(context, rows, hidden_size, vocab_size, logit_rows, to_hidden, nullptr, chunk_d_hidden, hidden_size, false);
    }
    if (d_table) {
      gemm(context, vocab_size, hidden_size, rows, {logits, 1, vocab_size}, hidden_rows, nullptr, d_table, hidden_size,
           true);
    }
    if (d_bias) {
      constexpr int64_t kBlockColumns = 1024;
      context.pool.parallel_for((vocab_size + kBlockColumns - 1) / kBlockColumns, [&](int64_t block, int) {
        const int64_t first = block * kBlockColumns;
        const int64_t count = std::min(kBlockColumns, vocab_size - first);
        for (int64_t r = 0; r < rows; ++r) {
          const float* row = logits + r * vocab_size + first;
          for (int64_t c = 0; c < count; ++c) d_bias[first + c] += row[c];
        }
      });
    }
  }
  return result;
}

}  // namespace limbeck
