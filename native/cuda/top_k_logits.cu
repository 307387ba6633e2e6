#include <algorithm>
#include <string>

#include "core/error.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_head.h"
#include "cuda/loss_rows.h"
#include "cuda/select_best.h"

namespace limbeck::cuda {
namespace {

/// A row of logits with its bias; both are padded.
template <typename T>
struct LogitSource {
  static constexpr int kWidth = 4;
  const float* logits;
  const T* bias;  // or null

  __device__ __forceinline__ uint4 load(int64_t i) const { return load_16(logits + i); }
  __device__ __forceinline__ void values(const uint4& raw, int64_t i, float (&x)[kWidth]) const {
    unpack<float>(raw, x);
    if (bias) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) x[j] += to_float(bias[i + j]);
    }
  }
  __device__ __forceinline__ void entries(const uint4& raw, int64_t i, Entry (&out)[kWidth]) const {
    float x[kWidth];
    values(raw, i, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out[j] = entry_of(key_of(x[j]), i + j);
  }
  __device__ __forceinline__ float value(int64_t i) const { return logits[i] + (bias ? to_float(bias[i]) : 0.0f); }
};

/// One block a row.   logits [·, stride], indices, values [·, k] =, log_sum_exp [·] =, sorted [·, sorted_size] scratch
template <typename T>
__global__ void __launch_bounds__(kSelectThreads, 2)
    top_k_rows_kernel(const float* logits, const T* bias, int64_t vocab_size, int64_t stride, int k, Entry* sorted,
                      int64_t sorted_size, int32_t* indices, float* values, float* log_sum_exp) {
  __shared__ SelectMemory memory;
  __shared__ float reduction[ThreadGroup<kSelectThreads>::kSharedFloats];
  const ThreadGroup<kSelectThreads> group{reduction};
  const int64_t r = blockIdx.x;
  const LogitSource<T> source{logits + r * stride, bias};
  RunningSum sum;
  for (int64_t i = threadIdx.x * 4; i < vocab_size; i += kSelectThreads * 4) {
    float x[4];
    source.values(source.load(i), i, x);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j >= vocab_size) x[j] = kMinusInfinity;
    }
    sum.add(x);
  }
  sum.join(group);
  if (threadIdx.x == 0) log_sum_exp[r] = sum.largest + logf(sum.sum);
  select_best(memory, source, vocab_size, k, sorted + r * sorted_size, [&](int rank, Entry entry) {
    const int32_t index = index_of_entry(entry);
    indices[r * k + rank] = index;
    values[r * k + rank] = source.value(index);
  });
}

}  // namespace

template <typename T>
void top_k_logits(Context& context, const T* hidden, const OutputTable<T>& table, int64_t k, int32_t* indices,
                  float* values, float* log_sum_exp, int64_t num_rows, int64_t hidden_size, int64_t chunk_rows) {
  if (k < 1 || k > table.vocab_size) {
    throw Error("ERR_INVALID_ARGUMENT",
                "k must be in [1, " + std::to_string(table.vocab_size) + "], got " + std::to_string(k));
  }
  if (num_rows == 0) return;
  const int64_t stride = table.padded_vocab_size, sorted_size = sorted_entries(k);
  if (chunk_rows <= 0) {
    const int64_t row_bytes =
        stride * static_cast<int64_t>(sizeof(float)) + sorted_size * static_cast<int64_t>(sizeof(Entry));
    chunk_rows = std::max<int64_t>(512, (int64_t{1500} << 20) / row_bytes / 128 * 128);
  }
  chunk_rows = std::min(chunk_rows, num_rows);
  DeviceArena::Scope scope(context.arena);
  float* logits = context.arena.allocate<float>(chunk_rows * stride);
  Entry* sorted = sorted_size > 0 ? context.arena.allocate<Entry>(chunk_rows * sorted_size) : nullptr;
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    // In fp32, bias and all: logits rounded to bf16 would be full of ties.
    gemm<T, float>(context, {rows, stride, hidden_size, false, true, hidden_size, hidden_size, stride},
                   hidden + begin * hidden_size, table.weight, nullptr, nullptr, logits);
    launch(context, top_k_rows_kernel<T>, dim3(static_cast<unsigned>(rows)), dim3(kSelectThreads), 0, logits,
           table.bias, table.vocab_size, stride, static_cast<int>(k), sorted, sorted_size, indices + begin * k,
           values + begin * k, log_sum_exp + begin);
  }
}

#define LIMBECK_INSTANTIATE(T)                                                                                         \
  template void top_k_logits<T>(Context&, const T*, const OutputTable<T>&, int64_t, int32_t*, float*, float*, int64_t, \
                                int64_t, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
