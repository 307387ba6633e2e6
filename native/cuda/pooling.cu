#include "cuda/launch.h"
#include "cuda/pooling.h"

namespace limbeck::cuda {

namespace {

constexpr int kThreads = 128;

// One block a sequence; each thread sums its columns in the order of the tokens.
template <typename T>
__global__ void mean_kernel(const T* hidden, const int32_t* sequence_offsets, float* pooled, int64_t width) {
  const int64_t s = blockIdx.x;
  const int64_t begin = sequence_offsets[s], end = sequence_offsets[s + 1];
  for (int64_t c = threadIdx.x; c < width; c += kThreads) {
    float sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += to_float(hidden[i * width + c]);
    pooled[s * width + c] = sum / static_cast<float>(end - begin);
  }
}

template <typename T>
__global__ void token_kernel(const T* hidden, const int32_t* sequence_offsets, bool is_last, float* pooled,
                             int64_t width) {
  const int64_t s = blockIdx.x;
  const int64_t token = is_last ? sequence_offsets[s + 1] - 1 : sequence_offsets[s];
  for (int64_t c = threadIdx.x; c < width; c += kThreads) pooled[s * width + c] = to_float(hidden[token * width + c]);
}

// One block a sequence, one thread a key token at a time: what it receives, before normalisation.
__global__ void received_kernel(AttentionShape shape, const float* maps, float* received) {
  const int64_t s = blockIdx.x, H = shape.num_attention_heads;
  const int64_t begin = shape.sequence_offsets[s], t = shape.sequence_offsets[s + 1] - begin;
  const float* own_maps = maps + H * shape.map_offsets[s];  // [H, t, t]
  for (int64_t j = threadIdx.x; j < t; j += kThreads) {
    const int64_t first = shape.causal ? j : 0;  // the queries that see token j
    int64_t last = t;
    if (shape.sliding_window > 0 && j + shape.sliding_window < t) last = j + shape.sliding_window;
    double sum = 0;
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = first; i < last; ++i) sum += static_cast<double>(own_maps[(h * t + i) * t + j]);
    }
    received[begin + j] = static_cast<float>(sum / static_cast<double>(last - first));
  }
}

template <typename T>
__global__ void weighted_kernel(AttentionShape shape, const T* hidden, const float* received, float* pooled,
                                int64_t width) {
  const int64_t s = blockIdx.x;
  const int64_t begin = shape.sequence_offsets[s], end = shape.sequence_offsets[s + 1];
  double total = 0;
  for (int64_t i = begin; i < end; ++i) total += static_cast<double>(received[i]);
  for (int64_t c = threadIdx.x; c < width; c += kThreads) {
    float sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float weight = static_cast<float>(static_cast<double>(received[i]) / total);
      sum += weight * to_float(hidden[i * width + c]);
    }
    pooled[s * width + c] = sum;
  }
}

}  // namespace

template <typename T>
void pool_mean(Context& context, const T* hidden, const int32_t* sequence_offsets, float* pooled, int64_t num_sequences,
               int64_t width) {
  launch(context, mean_kernel<T>, dim3(static_cast<unsigned>(num_sequences)), dim3(kThreads), 0, hidden,
         sequence_offsets, pooled, width);
}

template <typename T>
void pool_by_attention(Context& context, const AttentionShape& shape, const float* maps, const T* hidden,
                       float* received, float* pooled, int64_t width) {
  const dim3 grid(static_cast<unsigned>(shape.num_sequences));
  launch(context, received_kernel, grid, dim3(kThreads), 0, shape, maps, received);
  launch(context, weighted_kernel<T>, grid, dim3(kThreads), 0, shape, hidden, static_cast<const float*>(received),
         pooled, width);
}

template <typename T>
void pool_token(Context& context, const T* hidden, const int32_t* sequence_offsets, bool is_last, float* pooled,
                int64_t num_sequences, int64_t width) {
  launch(context, token_kernel<T>, dim3(static_cast<unsigned>(num_sequences)), dim3(kThreads), 0, hidden,
         sequence_offsets, is_last, pooled, width);
}

#define LIMBECK_INSTANTIATE(T)                                                                                \
  template void pool_mean<T>(Context&, const T*, const int32_t*, float*, int64_t, int64_t);                   \
  template void pool_by_attention<T>(Context&, const AttentionShape&, const float*, const T*, float*, float*, \
                                     int64_t);                                                                \
  template void pool_token<T>(Context&, const T*, const int32_t*, bool, float*, int64_t, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
