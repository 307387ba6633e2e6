// Attention on the tensor cores, forward (Dao 2023, arXiv:2307.08691, alg. 1).
//
// A block has 128 query rows of a head (64 of short sequences), a warp 32 of them: each fragment of keys and values
// that it loads is used for two row tiles, else shared memory, not the tensor cores, would set the pace. Scores stay in
// registers and are the left operand of the product with the values as they are. Keys and values of the next tile come
// while this one is computed.

#include "cuda/attention_tiles.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

/// Short sequences take blocks of two warps, of which more run at once.
template <int kDim_, int kWarps_, bool kDropout_>
struct Forward {
  static constexpr int kDim = kDim_;
  static constexpr bool kDropout = kDropout_;
  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps, kBlocksAtOnce = 8 / kWarps;
  static constexpr int kRowTiles = 2, kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows, kKeys = 64;
  static constexpr bool kQueriesStayInRegisters = kDim <= 64;
  static constexpr int kStage = 2 * kKeys * kDim;                                 // keys and values
  static constexpr int kQueries = kQueriesStayInRegisters ? kStage : 2 * kStage;  // place of the query tile
  static constexpr size_t kSharedBytes =
      (kQueriesStayInRegisters ? 2 * kStage : kQueries + kRows * kDim) * sizeof(bf16);
  static_assert(!kQueriesStayInRegisters || kRows * kDim <= kStage, "the query tile is where the second stage will be");
};

template <typename F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksAtOnce)
    attention_forward_kernel(AttentionTask task, const bf16* qkv, bf16* y, float* lse) {
  constexpr int M = F::kRowTiles, N = F::kKeys / 8, kDim = F::kDim;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * F::kRows;  // the blocks with most keys come first
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = block_row + warp * F::kWarpRows;
  const int64_t stride = task.row_stride();
  const bf16* const rows = qkv + part.first * stride;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const bf16* const keys = rows + static_cast<int64_t>(task.num_heads + kv_head) * dim;
  const bf16* const values = keys + static_cast<int64_t>(task.num_kv_heads) * dim;

  const int first_tile = task.keys_begin(block_row) / F::kKeys;
  const int end_tile = (task.keys_end(block_row, F::kRows, length) + F::kKeys - 1) / F::kKeys;
  // What the warp needs of them.
  const int warp_begin = task.keys_begin(warp_row);
  const int warp_end = warp_row < length ? task.keys_end(warp_row, F::kWarpRows, length) : 0;

  bf16* const queries = shared + F::kQueries;
  load_tile_async<F::kRows, kDim, F::kThreads>(queries, rows + block_row * stride + part.head * dim, stride,
                                               length - block_row, dim);
  const auto load_stage = [&](int tile) {
    bf16* const stage = shared + ((tile - first_tile) & 1) * F::kStage;
    const int64_t key = static_cast<int64_t>(tile) * F::kKeys;
    load_tile_async<F::kKeys, kDim, F::kThreads>(stage, keys + key * stride, stride, length - tile * F::kKeys, dim);
    load_tile_async<F::kKeys, kDim, F::kThreads>(stage + F::kKeys * kDim, values + key * stride, stride,
                                                 length - tile * F::kKeys, dim);
    cp_async_commit();
  };
  load_stage(first_tile);

  const SharedAddress lane_queries = lane_rows<kDim>(queries, warp * F::kWarpRows);
  uint32_t kept_queries[F::kQueriesStayInRegisters ? kDim / 16 : 1][M][4];
  if constexpr (F::kQueriesStayInRegisters) {
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) load_left<M, kDim>(kept_queries[k], lane_queries, k);
  }

  uint64_t seed = 0, map = 0;
  if constexpr (F::kDropout) {
    seed = *task.seed;
    map = static_cast<uint64_t>(head_map(task, part, part.head));
  }
  const float scale = task.scale * kLog2OfE;  // scores in powers of 2
  float out[M][kDim / 8][4];
  clear(out);
  float largest[2 * M], sums[2 * M];  // of row lane/4 + 8·i: of scores before scaling; of this lane's columns
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    largest[i] = -1e30f;  // finite: a difference of two is never NaN
    sums[i] = 0;
  }

#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    if (tile + 1 < end_tile) load_stage(tile + 1);
    const int key = tile * F::kKeys;
    if (key >= warp_end || key + F::kKeys <= warp_begin) continue;
    const bf16* const stage = shared + ((tile - first_tile) & 1) * F::kStage;
    const SharedAddress lane_keys = lane_columns<kDim>(stage, 0);
    const SharedAddress lane_values = lane_rows<kDim>(stage + F::kKeys * kDim, 0);

    float scores[M][N][4];
    clear(scores);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      if constexpr (F::kQueriesStayInRegisters) {
        multiply_rows<M, N, kDim>(scores, kept_queries[k], lane_keys, k);
      } else {
        uint32_t a[M][4];
        load_left<M, kDim>(a, lane_queries, k);
        multiply_rows<M, N, kDim>(scores, a, lane_keys, k);
      }
    }

    mask_unseen(task, scores, warp_row, key, length, -INFINITY);

    float tile_largest[2 * M];
    bool is_larger = false;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const int m = i / 2, half = i % 2;
      float x = fmaxf(scores[m][0][2 * half], scores[m][0][2 * half + 1]);
#pragma unroll
      for (int n = 1; n < N; ++n) x = fmaxf(x, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
      x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
      tile_largest[i] = x;
      is_larger = is_larger || (x - largest[i]) * scale > kSlack;
    }
    if (__any_sync(kAllLanes, is_larger)) {
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) {
        const float larger = fmaxf(largest[i], tile_largest[i]);
        const float factor = exp2_approx((largest[i] - larger) * scale);
        largest[i] = larger;
        sums[i] *= factor;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          out[i / 2][n][i % 2 * 2] *= factor;
          out[i / 2][n][i % 2 * 2 + 1] *= factor;
        }
      }
    }

    uint32_t keep[2] = {};  // lane l: row l of the warp
    if constexpr (F::kDropout) {
      const uint64_t element = map + static_cast<uint64_t>(warp_row + lane) * static_cast<uint64_t>(length) + key;
      keep[0] = attention_keep_bits(task, seed, element);
      keep[1] = attention_keep_bits(task, seed, element + 32);
    }
    float shift[2 * M];
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) shift[i] = largest[i] * scale;
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t bits = 0;
          if constexpr (F::kDropout) {
            bits = __shfl_sync(kAllLanes, keep[k / 2], 16 * m + 8 * half + lane / 4) >> (k % 2 * 16 + lane % 4 * 2);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {  // column 16·k + 8·(j / 2) + 2·(lane % 4) + j % 2
            float& x = scores[m][2 * k + j / 2][2 * half + j % 2];
            x = exp2_approx(fmaf(x, scale, -shift[2 * m + half]));
            sums[2 * m + half] += x;
            if constexpr (F::kDropout) {
              if ((bits >> (j / 2 * 8 + j % 2) & 1) == 0) x = 0;
            }
          }
        }
      }
      uint32_t a[M][4];
      left_of_sums(a, scores, k);
      multiply_columns<M, kDim>(out, a, lane_values, k);
    }
  }

  cp_async_wait<0>();
  __syncthreads();  // the stages are free
  float factors[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const float sum = lanes_sum<4>(sums[i]);
    factors[i] = sum > 0 ? (F::kDropout ? task.keep_scale : 1.0f) / sum : 0.0f;
    const int row = warp_row + 8 * i + lane / 4;
    if (lane % 4 == 0 && row < length) {
      lse[part.head * task.num_tokens + part.first + row] = (largest[i] * scale + log2f(sum)) * kLogOf2;
    }
  }
  store_sums<M, kDim>(shared, warp * F::kWarpRows, out, factors);
  __syncwarp();
  const int64_t y_stride = task.y_stride();
  store_tile_rows<F::kWarpRows, kDim>(shared, warp * F::kWarpRows,
                                      y + (part.first + block_row) * y_stride + part.head * dim, y_stride,
                                      length - block_row, dim);
}

template <int kDim, int kWarps, bool kDropout>
void launch_forward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv, bf16* y,
                    float* lse) {
  using F = Forward<kDim, kWarps, kDropout>;
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, F::kRows);
  launch(context, attention_forward_kernel<F>, dim3(blocks), dim3(F::kThreads), F::kSharedBytes, task, qkv, y, lse);
}

template <int kDim, int kWarps>
void launch_forward(Context& context, const AttentionTask& task, const AttentionShape& shape, const bf16* qkv, bf16* y,
                    float* lse) {
  if (task.seed) {
    launch_forward<kDim, kWarps, true>(context, task, shape, qkv, y, lse);
  } else {
    launch_forward<kDim, kWarps, false>(context, task, shape, qkv, y, lse);
  }
}

}  // namespace

void flash_attention_forward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                             bf16* y, float* lse) {
  if (!task.seed && shape.head_dim > 32 && has_warpgroup_products()) {
    return warpgroup_attention_forward(context, task, shape, qkv, y, lse);
  }
  const bool is_short = shape.max_length <= kShortSequence;
  if (shape.head_dim > 64) {
    launch_forward<128, 4>(context, task, shape, qkv, y, lse);
  } else if (shape.head_dim > 32) {
    is_short ? launch_forward<64, 2>(context, task, shape, qkv, y, lse)
             : launch_forward<64, 4>(context, task, shape, qkv, y, lse);
  } else {
    is_short ? launch_forward<32, 2>(context, task, shape, qkv, y, lse)
             : launch_forward<32, 4>(context, task, shape, qkv, y, lse);
  }
}

}  // namespace limbeck::cuda
