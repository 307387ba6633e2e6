#include <algorithm>

#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_rows.h"
#include "cuda/sampled_loss.h"

namespace limbeck::cuda {
namespace {

constexpr int kCopyThreads = 256;

/// One block a row of the sampled table; rows from `count` on are zeros.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    sample_rows_kernel(const T* table, const T* table_bias, const int32_t* indices, int64_t count, T* weight, T* bias,
                       int64_t hidden_size, bool is_packed) {
  const int64_t r = blockIdx.x;
  const T* from = r < count ? table + static_cast<int64_t>(indices[r]) * hidden_size : nullptr;
  T* to = weight + r * hidden_size;
  const int thread = static_cast<int>(threadIdx.x);
  if (is_packed) {
    for (int64_t c = thread * kPack<T>; c < hidden_size; c += kCopyThreads * kPack<T>) {
      store_16(to + c, from ? load_16(from + c) : make_uint4(0, 0, 0, 0));
    }
  } else {
    for (int64_t c = thread; c < hidden_size; c += kCopyThreads) to[c] = from ? from[c] : from_float<T>(0);
  }
  if (bias && thread == 0) bias[r] = from && table_bias ? table_bias[indices[r]] : from_float<T>(0);
}

__global__ void __launch_bounds__(kCopyThreads)
    scatter_rows_kernel(const float* d_sampled, const float* d_sampled_bias, const int32_t* indices, float* d_table,
                        float* d_bias, int64_t hidden_size) {
  const int64_t r = blockIdx.x, to = indices[r];
  for (int64_t c = threadIdx.x; c < hidden_size; c += kCopyThreads) {
    d_table[to * hidden_size + c] += d_sampled[r * hidden_size + c];
  }
  if (d_bias && d_sampled_bias && threadIdx.x == 0) d_bias[to] += d_sampled_bias[r];
}

/// own_logits [num_rows] = hidden·weight (+ bias), a warp a row.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    own_logits_kernel(const T* hidden, const T* weight, const T* bias, float* own_logits, int64_t num_rows,
                      int64_t hidden_size) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kCopyThreads / 32) + threadIdx.x / 32;
  if (r >= num_rows) return;
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < hidden_size; c += 32) {
    sum = fmaf(to_float(hidden[r * hidden_size + c]), to_float(weight[r * hidden_size + c]), sum);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  if (threadIdx.x % 32 == 0) own_logits[r] = sum + (bias ? to_float(bias[r]) : 0.0f);
}

/// d_hidden += gradient·weight, d_weight = gradient·hidden, a warp a row.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    own_logits_backward_kernel(const T* hidden, const T* weight, const float* own_gradients, T* d_hidden, T* d_weight,
                               int64_t num_rows, int64_t hidden_size) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kCopyThreads / 32) + threadIdx.x / 32;
  if (r >= num_rows) return;
  const float gradient = own_gradients[r];
  for (int64_t c = threadIdx.x % 32; c < hidden_size; c += 32) {
    const int64_t at = r * hidden_size + c;
    d_hidden[at] = from_float<T>(fmaf(gradient, to_float(weight[at]), to_float(d_hidden[at])));
    d_weight[at] = from_float<T>(gradient * to_float(hidden[at]));
  }
}

}  // namespace

template <typename T>
void sampled_loss_head(Context& context, const T* hidden, const OutputTable<T>& drawn, const SampledLabels<T>& labels,
                       float ce_weight, float row_scale, T* d_hidden, float* d_drawn, float* d_drawn_bias, T* d_labels,
                       float* d_labels_bias, double* sums, int64_t num_rows, int64_t hidden_size, int64_t chunk_rows) {
  if (num_rows == 0) return;
  const int64_t count = drawn.vocab_size, stride = drawn.padded_vocab_size;
  chunk_rows = chunk_row_count(num_rows, stride * static_cast<int64_t>(sizeof(T)), chunk_rows);
  DeviceArena::Scope scope(context.arena);
  float2* losses = context.arena.allocate<float2>(num_rows);
  float* own_logits = context.arena.allocate<float>(num_rows);
  T* logits = context.arena.allocate<T>(chunk_rows * stride);
  const dim3 warps(static_cast<unsigned>(divide_up(num_rows, kCopyThreads / 32)));
  launch(context, own_logits_kernel<T>, warps, dim3(kCopyThreads), 0, hidden, labels.weight, labels.bias, own_logits,
         num_rows, hidden_size);
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    const T* chunk_hidden = hidden + begin * hidden_size;
    gemm<T, T>(context, logits_shape(drawn, rows, hidden_size), chunk_hidden, drawn.weight, drawn.bias, nullptr,
               logits);
    LossRows chunk{};
    chunk.labels = labels.columns + begin;
    chunk.own_logits = own_logits + begin;
    chunk.own_gradients = d_labels_bias + begin;
    chunk.losses = losses + begin;
    chunk.num_rows = rows;
    chunk.vocab_size = static_cast<int>(count);
    chunk.stride = static_cast<int>(stride);
    chunk.ce_weight = ce_weight;
    chunk.temperature = chunk.fusion = chunk.gate = 1;
    chunk.row_scale = row_scale;
    chunk.wants_gradient = true;
    launch_loss_rows(context, chunk, TeacherRows<NoTeacher>{}, logits);
    gemm<T, T>(context, {rows, hidden_size, stride, false, false, stride, hidden_size, hidden_size}, logits,
               drawn.weight, nullptr, nullptr, d_hidden + begin * hidden_size);
    gemm<T, float>(context, {stride, hidden_size, rows, true, false, stride, hidden_size, hidden_size}, logits,
                   chunk_hidden, nullptr, d_drawn, d_drawn);
    if (d_drawn_bias) add_row_sums(context, logits, stride, rows, count, d_drawn_bias);
  }
  launch(context, own_logits_backward_kernel<T>, warps, dim3(kCopyThreads), 0, hidden, labels.weight,
         static_cast<const float*>(d_labels_bias), d_hidden, d_labels, num_rows, hidden_size);
  sum_losses(context, losses, num_rows, sums);
}

template <typename T>
void sample_table(Context& context, const OutputTable<T>& table, const int32_t* indices, int64_t count, T* weight,
                  T* bias, int64_t hidden_size) {
  const int64_t padded = divide_up(count, 64) * 64;
  if (padded == 0) return;
  const bool is_packed = hidden_size % kPack<T> == 0 && is_aligned(table.weight) && is_aligned(weight);
  launch(context, sample_rows_kernel<T>, dim3(static_cast<unsigned>(padded)), dim3(kCopyThreads), 0, table.weight,
         table.bias, indices, count, weight, bias, hidden_size, is_packed);
}

void scatter_table_gradient(Context& context, const float* d_sampled, const float* d_sampled_bias,
                            const int32_t* indices, int64_t count, float* d_table, float* d_bias, int64_t hidden_size) {
  if (count == 0) return;
  launch(context, scatter_rows_kernel, dim3(static_cast<unsigned>(count)), dim3(kCopyThreads), 0, d_sampled,
         d_sampled_bias, indices, d_table, d_bias, hidden_size);
}

#define LIMBECK_INSTANTIATE(T)                                                                                         \
  template void sampled_loss_head<T>(Context&, const T*, const OutputTable<T>&, const SampledLabels<T>&, float, float, \
                                     T*, float*, float*, T*, float*, double*, int64_t, int64_t, int64_t);              \
  template void sample_table<T>(Context&, const OutputTable<T>&, const int32_t*, int64_t, T*, T*, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
