#include <algorithm>

#include "cuda/gemm.h"
#include "cuda/item_scorer.h"
#include "cuda/rank_items.h"
#include "cuda/select_best.h"

namespace limbeck::cuda {
namespace {

constexpr int64_t kScoreBytes = int64_t{1} << 30;
constexpr int64_t kTileRows = 128;  // of a product

/// Scores of one case. Items without one are no entries.
struct CaseScores {
  static constexpr int kWidth = 4;
  const float* scores;

  __device__ __forceinline__ uint4 load(int64_t i) const { return load_16(scores + i); }
  __device__ __forceinline__ void entries(const uint4& raw, int64_t i, Entry (&out)[kWidth]) const {
    float x[kWidth];
    unpack<float>(raw, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out[j] = x[j] != x[j] ? 0 : entry_of(key_of(x[j]), i + j);
  }
};

/// How many of a row's scores are not less than the target's, NaN among them. All threads of the block.
__device__ __forceinline__ int count_not_less(const float* scores, int64_t num_items, float target_score) {
  constexpr int kWidth = CaseScores::kWidth, kStride = kSelectThreads * kWidth;
  int count = 0;
  for (int64_t first = threadIdx.x * kWidth; first < num_items; first += kSelectUnroll * kStride) {
    uint4 raw[kSelectUnroll];
#pragma unroll
    for (int u = 0; u < kSelectUnroll; ++u) {
      if (first + u * kStride < num_items) raw[u] = load_16(scores + first + u * kStride);
    }
#pragma unroll
    for (int u = 0; u < kSelectUnroll; ++u) {
      const int64_t i = first + u * kStride;
      if (i >= num_items) break;
      float x[kWidth];
      unpack<float>(raw[u], x);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) count += i + j < num_items && !(x[j] < target_score) ? 1 : 0;
    }
  }
  return count;
}

/// One block a case, the first of which is `first_case`.
///   scores [·, stride] those of what is excluded become NaN; sorted [·, sorted_size] scratch
///   ranks [num_cases], indices, values [num_cases, k] =
__global__ void __launch_bounds__(kSelectThreads, 2)
    rank_cases_kernel(float* scores, int64_t stride, int64_t num_items, RankCases cases, int64_t first_case, int k,
                      Entry* sorted, int64_t sorted_size, int32_t* ranks, int32_t* indices, float* values) {
  __shared__ SelectMemory memory;
  __shared__ int counts[kSelectThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t s = first_case + blockIdx.x;
  float* row = scores + blockIdx.x * stride;
  const float target_score = row[cases.targets[s]];
  const int32_t begin = cases.excluded_offsets[s], end = cases.excluded_offsets[s + 1];
  for (int32_t i = begin + thread; i < end; i += kSelectThreads) row[cases.excluded_items[i]] = __builtin_nanf("");
  __syncthreads();
  int count = count_not_less(row, num_items, target_score);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) count += __shfl_xor_sync(0xffffffffu, count, mask);
  if (thread % 32 == 0) counts[thread / 32] = count;
  __syncthreads();
  if (thread == 0) {
    // What is excluded counted against the target as well, which counted itself.
    int rank = begin - end;
    for (const int of_warp : counts) rank += of_warp;
    ranks[s] = rank;
  }
  if (k == 0) return;
  select_best(memory, CaseScores{row}, num_items, k, sorted + blockIdx.x * sorted_size,
              [&](int place, Entry entry) { write_item(indices, values, s * k + place, entry); });
}

}  // namespace

template <typename T>
void rank_items(Context& context, const T* queries, const OutputTable<T>& items, const RankCases& cases,
                int64_t num_cases, int64_t hidden_size, int64_t k, int32_t* ranks, int32_t* indices, float* scores,
                int64_t chunk_cases) {
  if (num_cases == 0) return;
  const int64_t stride = items.padded_vocab_size, sorted_size = sorted_entries(k);
  if (chunk_cases <= 0) {
    const int64_t row_bytes =
        stride * static_cast<int64_t>(sizeof(float)) + sorted_size * static_cast<int64_t>(sizeof(Entry));
    chunk_cases = std::max<int64_t>(1, kScoreBytes / row_bytes);
    if (chunk_cases > kTileRows) chunk_cases = chunk_cases / kTileRows * kTileRows;
  }
  chunk_cases = std::min(chunk_cases, num_cases);
  const DeviceArena::Scope scope(context.arena);
  float* chunk = context.arena.allocate<float>(chunk_cases * stride);
  Entry* sorted = sorted_size > 0 ? context.arena.allocate<Entry>(chunk_cases * sorted_size) : nullptr;
  for (int64_t begin = 0; begin < num_cases; begin += chunk_cases) {
    const int64_t rows = std::min(chunk_cases, num_cases - begin);
    gemm<T, float>(context, {rows, stride, hidden_size, false, true, hidden_size, hidden_size, stride},
                   queries + begin * hidden_size, items.weight, nullptr, nullptr, chunk);
    launch(context, rank_cases_kernel, dim3(grid_size(rows)), dim3(kSelectThreads), 0, chunk, stride, items.vocab_size,
           cases, begin, static_cast<int>(k), sorted, sorted_size, ranks, indices, scores);
  }
}

#define LIMBECK_INSTANTIATE(T)                                                                                        \
  template void rank_items<T>(Context&, const T*, const OutputTable<T>&, const RankCases&, int64_t, int64_t, int64_t, \
                              int32_t*, int32_t*, float*, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
