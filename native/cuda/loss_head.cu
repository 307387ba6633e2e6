#include <algorithm>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/catalogue_loss.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_head.h"
#include "cuda/loss_rows.h"

namespace limbeck::cuda {
namespace {

constexpr int kCopyThreads = 256;

/// out [num_rows, width] = logits [num_rows, stride] + bias (or null)
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    copy_logits_kernel(const float* logits, const T* bias, float* out, int64_t width, int64_t stride) {
  const int64_t r = blockIdx.x;
  for (int64_t c = threadIdx.x; c < width; c += kCopyThreads) {
    __stcs(out + r * width + c, logits[r * stride + c] + (bias ? to_float(bias[c]) : 0.0f));
  }
}

void check_options(const LossHeadOptions& options, int num_sources, bool has_teacher, const uint8_t* allowed) {
  if (!(options.temperature > 0)) {
    throw Error("ERR_INVALID_ARGUMENT",
                "temperature must be greater than 0, got " + std::to_string(options.temperature));
  }
  if (num_sources > 1) {
    throw Error("ERR_INVALID_ARGUMENT", "teacher logits must come from one source: dense, factorised or top-k");
  }
  if (has_teacher && allowed) {
    throw Error("ERR_INVALID_ARGUMENT",
                "sampled softmax cannot be combined with a teacher, whose logits cover every column. Drop one of them");
  }
}

}  // namespace

template <typename T>
void loss_head(Context& context, const T* hidden, const OutputTable<T>& table, const int32_t* labels,
               const TeacherLogits<T>& teacher, const LossHeadOptions& options, float row_scale, const uint8_t* allowed,
               T* d_hidden, float* d_table, bool accumulates_table, float* d_bias, double* sums, int64_t num_rows,
               int64_t hidden_size, int64_t chunk_rows) {
  check_options(options, (teacher.dense != nullptr) + (teacher.hidden != nullptr) + (teacher.top_k > 0),
                teacher.present(), allowed);
  const bool has_teacher = teacher.present() && options.kd_weight != 0;
  const int64_t vocab_size = table.vocab_size, stride = table.padded_vocab_size;
  if (num_rows == 0 || (options.ce_weight == 0 && !has_teacher)) {
    if (d_hidden) set_zero(context, d_hidden, num_rows * hidden_size);
    if (d_hidden && d_table && !accumulates_table) set_zero(context, d_table, stride * hidden_size);
    return;
  }
  const bool is_factorised = has_teacher && teacher.hidden;
  chunk_rows = chunk_row_count(num_rows, stride * static_cast<int64_t>(sizeof(T)), chunk_rows);

  DeviceArena::Scope scope(context.arena);
  float2* losses = context.arena.allocate<float2>(num_rows);
  if constexpr (std::is_same_v<T, bf16>) {
    if (!has_teacher && !allowed && fits_catalogue_loss(hidden, table, d_hidden, hidden_size)) {
      catalogue_loss(context, hidden, table, labels, row_scale * options.ce_weight, d_hidden, d_table,
                     accumulates_table, d_bias, losses, num_rows, hidden_size, chunk_rows);
      sum_losses(context, losses, num_rows, sums);
      return;
    }
  }
  T* logits = context.arena.allocate<T>(chunk_rows * stride);
  T* teacher_logits = is_factorised ? context.arena.allocate<T>(chunk_rows * stride) : nullptr;
  float* listed =
      has_teacher && teacher.top_k > 0 ? context.arena.allocate<float>(chunk_rows * teacher.top_k) : nullptr;

  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    const T* chunk_hidden = hidden + begin * hidden_size;
    gemm<T, T>(context, logits_shape(table, rows, hidden_size), chunk_hidden, table.weight, table.bias, nullptr,
               logits);
    LossRows chunk{};
    chunk.labels = labels + begin;
    chunk.allowed = allowed;
    chunk.losses = losses + begin;
    chunk.num_rows = rows;
    chunk.vocab_size = static_cast<int>(vocab_size);
    chunk.stride = static_cast<int>(stride);
    chunk.ce_weight = options.ce_weight;
    chunk.kd_weight = options.kd_weight;
    chunk.temperature = options.temperature;
    chunk.fusion = options.fusion;
    chunk.gate = options.gate;
    chunk.row_scale = row_scale;
    chunk.wants_gradient = d_hidden != nullptr;
    if (!has_teacher) {
      launch_loss_rows(context, chunk, TeacherRows<NoTeacher>{}, logits);
    } else if (is_factorised) {
      const int64_t width = teacher.hidden_size;
      gemm<T, T>(context, {rows, stride, width, false, true, width, width, stride}, teacher.hidden + begin * width,
                 teacher.table, teacher.bias, nullptr, teacher_logits);
      launch_loss_rows(context, chunk, TeacherRows<T>{teacher_logits, nullptr, stride, chunk.stride, true}, logits);
    } else if (teacher.dense) {
      const bool is_packed = is_aligned(teacher.dense) && vocab_size % kPack<float> == 0;
      const TeacherRows<float> dense =
          teacher.dense_rows
              ? TeacherRows<float>{teacher.dense, teacher.dense_rows + begin, vocab_size, chunk.vocab_size, is_packed}
              : TeacherRows<float>{teacher.dense + begin * vocab_size, nullptr, vocab_size, chunk.vocab_size,
                                   is_packed};
      launch_loss_rows(context, chunk, dense, logits);
    } else {
      const int64_t k = teacher.top_k;
      const TopKRows top_k{teacher.top_k_indices + begin * k, teacher.top_k_values + begin * k,
                           teacher.log_sum_exp + begin, listed, static_cast<int>(k)};
      launch_loss_rows(context, chunk, top_k, logits);
    }
    if (!d_hidden) continue;

    // The pad columns' gradients are zeros.
    gemm<T, T>(context, {rows, hidden_size, stride, false, false, stride, hidden_size, hidden_size}, logits,
               table.weight, nullptr, nullptr, d_hidden + begin * hidden_size);
    if (d_table) {
      gemm<T, float>(context, {stride, hidden_size, rows, true, false, stride, hidden_size, hidden_size}, logits,
                     chunk_hidden, nullptr, begin > 0 || accumulates_table ? d_table : nullptr, d_table);
    }
    if (d_bias) add_row_sums(context, logits, stride, rows, vocab_size, d_bias);
  }
  sum_losses(context, losses, num_rows, sums);
}

template <typename T>
void dense_logits(Context& context, const T* hidden, const OutputTable<T>& table, float* logits, int64_t num_rows,
                  int64_t hidden_size, int64_t chunk_rows) {
  if (num_rows == 0) return;
  const int64_t stride = table.padded_vocab_size;
  chunk_rows = chunk_row_count(num_rows, stride * static_cast<int64_t>(sizeof(float)), chunk_rows);
  DeviceArena::Scope scope(context.arena);
  float* chunk = context.arena.allocate<float>(chunk_rows * stride);
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    gemm<T, float>(context, logits_shape(table, rows, hidden_size), hidden + begin * hidden_size, table.weight, nullptr,
                   nullptr, chunk);
    launch(context, copy_logits_kernel<T>, dim3(static_cast<unsigned>(rows)), dim3(kCopyThreads), 0, chunk, table.bias,
           logits + begin * table.vocab_size, table.vocab_size, stride);
  }
}

#define LIMBECK_INSTANTIATE(T)                                                                                   \
  template void loss_head<T>(Context&, const T*, const OutputTable<T>&, const int32_t*, const TeacherLogits<T>&, \
                             const LossHeadOptions&, float, const uint8_t*, T*, float*, bool, float*, double*,   \
                             int64_t, int64_t, int64_t);                                                         \
  template void dense_logits<T>(Context&, const T*, const OutputTable<T>&, float*, int64_t, int64_t, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
