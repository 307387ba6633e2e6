// Maps in memory: what a distillation compares.

#include <algorithm>
#include <cfloat>
#include <type_traits>

#include "cuda/attention_products.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

// A tile of a map, of which the longest sequence has side × side.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) scores_kernel(AttentionTask task, const T* queries, const T* keys,
                                                              int64_t stride, int side, const float* lse, float* maps) {
  LIMBECK_SHARED_MEMORY(float, lines);
  const AttentionPart part = attention_part(task, task.num_heads);
  const int length = part.length, dim = task.head_dim;
  const int block_row = part.block / side * kTileSize, block_key = part.block % side * kTileSize;
  if (block_row >= length || block_key >= length) return;
  const int last_row = block_row + kTileSize - 1 < length ? block_row + kTileSize - 1 : length - 1;
  float tile[4][4];
  clear(tile);
  // Tiles in which nothing is seen are only zeros.
  if (block_key <= task.last_key(last_row, length) && block_key + kTileSize > task.keys_begin(block_row)) {
    const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
    multiply_rows(tile, lines, queries + (part.first + block_row) * stride + part.head * dim, stride,
                  length - block_row, keys + (part.first + block_key) * stride + kv_head * dim, stride,
                  length - block_key, dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = block_row + tile_row() + i;
      const float row_lse = lse && row < length ? lse[part.head * task.num_tokens + part.first + row] : 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float score = tile[i][j] * task.scale;
        const float value = lse ? expf(score - row_lse) : score;
        tile[i][j] = sees(task, row, block_key + tile_column() + j, length) ? value : 0.0f;
      }
    }
  }
  float* const map = maps + head_map(task, part, part.head);
  const int key = block_key + tile_column();
  const bool is_aligned = length % 4 == 0 && reinterpret_cast<uintptr_t>(map) % 16 == 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = block_row + tile_row() + i;
    if (row >= length) continue;
    float* const out = map + static_cast<int64_t>(row) * length + key;
    if (is_aligned && key < length) {
      __stcs(reinterpret_cast<float4*>(out), make_float4(tile[i][0], tile[i][1], tile[i][2], tile[i][3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (key + j < length) out[j] = tile[i][j];
      }
    }
  }
}

// The same on the tensor cores: 128 rows of a map, tile of keys by tile of keys.
template <int kDim_>
struct FlashScores {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRowTiles = 2, kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows, kKeys = 64, kStage = kKeys * kDim;
  static constexpr size_t kSharedBytes = (2 * kStage + kRows * kDim) * sizeof(bf16);
};

template <typename F>
__global__ void __launch_bounds__(F::kThreads, 2)
    flash_scores_kernel(AttentionTask task, const bf16* queries, const bf16* keys, int64_t stride, const float* lse,
                        float* maps) {
  constexpr int M = F::kRowTiles, N = F::kKeys / 8, kDim = F::kDim;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads);
  const int block_row = part.block * F::kRows, length = part.length, dim = task.head_dim;
  if (block_row >= length) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = block_row + warp * F::kWarpRows;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const bf16* const head_keys = keys + part.first * stride + kv_head * dim;
  const int warp_begin = task.keys_begin(warp_row);
  const int warp_end = warp_row < length ? task.keys_end(warp_row, F::kWarpRows, length) : 0;
  const int end_tile = (length + F::kKeys - 1) / F::kKeys;

  bf16* const query_tile = shared + 2 * F::kStage;
  load_tile_async<F::kRows, kDim, F::kThreads>(
      query_tile, queries + (part.first + block_row) * stride + part.head * dim, stride, length - block_row, dim);
  const auto load_stage = [&](int tile) {
    load_tile_async<F::kKeys, kDim, F::kThreads>(shared + (tile & 1) * F::kStage,
                                                 head_keys + static_cast<int64_t>(tile) * F::kKeys * stride, stride,
                                                 length - tile * F::kKeys, dim);
    cp_async_commit();
  };
  load_stage(0);

  float row_lse[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int row = warp_row + 8 * i + lane / 4;
    row_lse[i] = lse && row < length ? lse[part.head * task.num_tokens + part.first + row] * kLog2OfE : 0.0f;
  }
  const float scale = lse ? task.scale * kLog2OfE : task.scale;
  float* const map = maps + head_map(task, part, part.head);
  const bool is_aligned = length % 2 == 0 && reinterpret_cast<uintptr_t>(map) % 8 == 0;
  uint32_t query[kDim / 16][M][4];

#pragma unroll 1
  for (int tile = 0; tile < end_tile; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    if (tile + 1 < end_tile) load_stage(tile + 1);
    if (tile == 0) {
      const SharedAddress lane_queries = lane_rows<kDim>(query_tile, warp * F::kWarpRows);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) load_left<M, kDim>(query[k], lane_queries, k);
    }
    const int key = tile * F::kKeys;
    float scores[M][N][4];
    clear(scores);
    if (key < warp_end && key + F::kKeys > warp_begin) {
      const SharedAddress lane_keys = lane_columns<kDim>(shared + (tile & 1) * F::kStage, 0);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) multiply_rows<M, N, kDim>(scores, query[k], lane_keys, k);
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float x = fmaf(scores[m][n][i], scale, -row_lse[2 * m + i / 2]);
            scores[m][n][i] = lse ? exp2_approx(x) : x;
          }
        }
      }
      mask_unseen(task, scores, warp_row, key, length, 0);
    }
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const int row = warp_row + 8 * i + lane / 4;
      if (row >= length) continue;
      const int first = key + lane % 4 * 2;
      float* const out = map + static_cast<int64_t>(row) * length + first;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float x = scores[i / 2][n][i % 2 * 2], y = scores[i / 2][n][i % 2 * 2 + 1];
        if (is_aligned && first + 8 * n < length) {
          *reinterpret_cast<float2*>(out + 8 * n) = make_float2(x, y);
        } else {
          if (first + 8 * n < length) out[8 * n] = x;
          if (first + 8 * n + 1 < length) out[8 * n + 1] = y;
        }
      }
    }
  }
}

template <int kDim>
void launch_flash_scores(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* queries,
                         const bf16* keys, int64_t stride, const float* lse, float* maps) {
  using F = FlashScores<kDim>;
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, F::kRows);
  launch(context, flash_scores_kernel<F>, dim3(blocks), dim3(F::kThreads), F::kSharedBytes, task, queries, keys, stride,
         lse, maps);
}

constexpr int kSumThreadsPerBlock = 256;

// Fixed parts of the elements, summed in double; partials [gridDim.x] =
__global__ void __launch_bounds__(kSumThreadsPerBlock)
    divergence_kernel(const float* teacher, const float* student, int64_t count, double* partials) {
  __shared__ double shared[kSumThreadsPerBlock / 32];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSumThreadsPerBlock;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreadsPerBlock + threadIdx.x; i < count; i += step) {
    const float t = __ldcs(teacher + i), s = __ldcs(student + i);
    sum += static_cast<double>(t * (logf(fmaxf(t, FLT_MIN)) - logf(fmaxf(s, FLT_MIN))));
  }
  sum = block_sum<kSumThreadsPerBlock>(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreadsPerBlock)
    add_partials_kernel(const double* partials, int count, double* sum) {
  __shared__ double shared[kSumThreadsPerBlock / 32];
  double own = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSumThreadsPerBlock) own += partials[i];
  own = block_sum<kSumThreadsPerBlock>(own, shared);
  if (threadIdx.x == 0) *sum += own;
}

}  // namespace

template <typename T>
void attention_scores(Context& context, AttentionTask task, const AttentionShape& shape, const T* queries,
                      const T* keys, int64_t stride, const float* lse, float* maps) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (fits_flash(shape, {queries, keys}) && stride % 8 == 0) {
      if (shape.head_dim <= 32) return launch_flash_scores<32>(context, task, shape, queries, keys, stride, lse, maps);
      if (shape.head_dim <= 64) return launch_flash_scores<64>(context, task, shape, queries, keys, stride, lse, maps);
      return launch_flash_scores<128>(context, task, shape, queries, keys, stride, lse, maps);
    }
  }
  const int64_t tiles = divide_up(shape.max_length, kTileSize);
  const unsigned blocks =
      attention_blocks(task, shape, shape.num_attention_heads * tiles * tiles, std::max<int64_t>(1, shape.max_length));
  task.blocks_per_head = static_cast<int>(tiles * tiles);
  launch(context, scores_kernel<T>, dim3(blocks), dim3(kTileThreads), kTileFloats * sizeof(float), task, queries, keys,
         stride, static_cast<int>(tiles), lse, maps);
}

void attention_map_divergence(Context& context, const float* teacher_maps, const float* student_maps,
                              int64_t map_elements, double* sum) {
  if (map_elements == 0) return;
  const DeviceArena::Scope scope(context.arena);
  constexpr int64_t kMostBlocks = 2048, kElementsPerThread = 8;
  const int64_t blocks = std::min(kMostBlocks, divide_up(map_elements, kSumThreadsPerBlock * kElementsPerThread));
  double* partials = context.arena.allocate<double>(blocks);
  launch(context, divergence_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kSumThreadsPerBlock), 0, teacher_maps,
         student_maps, map_elements, partials);
  launch(context, add_partials_kernel, dim3(1), dim3(kSumThreadsPerBlock), 0, static_cast<const double*>(partials),
         static_cast<int>(blocks), sum);
}

template void attention_scores(Context&, AttentionTask, const AttentionShape&, const float*, const float*, int64_t,
                               const float*, float*);
template void attention_scores(Context&, AttentionTask, const AttentionShape&, const bf16*, const bf16*, int64_t,
                               const float*, float*);

}  // namespace limbeck::cuda
